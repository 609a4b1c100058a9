"""The interpreter computes as a GPU does, and leaves no trace of itself."""

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from seeklet.modeling.kernels.launch import Configuration, runs_triton
from tests.kernels.ahead_of_time import build
from tests.kernels.interpreter import interpreted

FP8 = torch.float8_e4m3fn


@triton.jit
def twice(x):
    return x + x


@triton.jit
def cast_kernel(x_ptr, y_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets).to(y_ptr.dtype.element_ty))


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    result = tl.where(x > y, twice(x) * y, x - y * 3)
    tl.store(out_ptr + offsets, tl.maximum(result, -2))


@triton.jit
def reduce_kernel(x_ptr, out_ptr, N: tl.constexpr, WIDE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    x = x.to(tl.float32) if WIDE else x
    tl.store(out_ptr, x.sum(0) + tl.max(x, 0))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets), input_precision=PRECISION)
    tl.store(out_ptr + offsets, product)


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < size), mask=offsets < size)


@triton.autotune([triton.Config({"N": 4}), triton.Config({"N": 8})], key=[])
@triton.jit
def tuned_kernel(out_ptr, N: tl.constexpr):
    tl.store(out_ptr, N)


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.float64, FP8])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16, FP8, torch.float8_e5m2])
def test_casts_are_torchs(source: torch.dtype, target: torch.dtype) -> None:
    x = torch.cat((torch.randn(1018) * 100, torch.tensor([0.0, -0.0, 1e-3, 2**-9, 400.0, -448.0]))).to(source)
    y = torch.empty(1024).to(target)
    with interpreted():
        cast_kernel[(1,)](x, y, N=1024)
    assert torch.equal(y.float(), x.float().clamp(-60000, 60000).to(target).float())


def test_casting_to_fp8_saturates() -> None:
    y = torch.zeros(2, dtype=FP8)
    with interpreted():
        cast_kernel[(1,)](torch.tensor([1e4, -1e4]), y, N=2)
    assert y.float().tolist() == [448.0, -448.0]


@pytest.mark.parametrize("target", [torch.int32, torch.bfloat16])
def test_casts_between_integers_and_bf16(target: torch.dtype) -> None:
    source = torch.bfloat16 if target == torch.int32 else torch.int32
    x = torch.arange(-8, 8).to(source)
    y = torch.empty(16).to(target)
    with interpreted():
        cast_kernel[(1,)](x, y, N=16)
    assert y.tolist() == list(range(-8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arithmetic_is_torchs(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 256).to(dtype)
    out = torch.empty_like(x)
    with interpreted():
        arithmetic_kernel[(1,)](x, y, out, N=256)
    expected = torch.where(x > y, (x + x) * y, x - y * 3).clamp(min=-2)
    torch.testing.assert_close(out, expected, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)


def test_reductions_of_half_precision_are_refused() -> None:
    x, out = torch.randn(64).bfloat16(), torch.empty(1)
    with interpreted():
        reduce_kernel[(1,)](x, out, N=64, WIDE=True)
        torch.testing.assert_close(out[0], x.float().sum() + x.float().max())
        with pytest.raises(InterpreterError, match="cast to fp32 first"):
            reduce_kernel[(1,)](x, out, N=64, WIDE=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_products_of_matrices_are_exact(dtype: torch.dtype) -> None:
    a, b = (torch.randn(2, 32, 32) / 4).to(dtype)
    out = torch.empty(32, 32)
    with interpreted():
        dot_kernel[(1,)](a, b, out, N=32, PRECISION="ieee")
    torch.testing.assert_close(out, a.float() @ b.float())


def test_products_in_tf32_are_as_coarse_as_on_a_gpu() -> None:
    a, b = torch.randn(2, 32, 32)
    exact, coarse = torch.empty(2, 32, 32)
    with interpreted():
        dot_kernel[(1,)](a, b, exact, N=32, PRECISION="ieee")
        dot_kernel[(1,)](a, b, coarse, N=32, PRECISION="tf32")
    torch.testing.assert_close(exact, a @ b)
    assert 1e-4 < (coarse - exact).norm() / exact.norm() < 1e-2


def test_an_address_outside_is_an_error() -> None:
    x, y = torch.arange(6.0), torch.empty(6)
    with interpreted():
        copy_kernel[(1,)](x, y, 6, N=8)
        assert torch.equal(x, y)
        with pytest.raises(InterpreterError, match="1 of 7 addresses"):
            copy_kernel[(1,)](x, y, 7, N=8)


def test_autotuned_kernels_take_their_first_configuration() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with interpreted():
        tuned_kernel[(1,)](out)
    assert out.item() == 4


def test_operators_take_kernels_only_inside() -> None:
    x = torch.empty(1)
    assert not runs_triton(x)
    with interpreted():
        assert runs_triton(x)
    assert not runs_triton(x)


def test_functions_decorated_inside_are_those_of_the_compiler() -> None:
    """Operators import their kernels when they first run, which may be inside."""
    with interpreted():
        assert type(triton.jit(twice.fn)) is type(twice)


def test_the_same_functions_compile_afterwards() -> None:
    pointers = {"x_ptr": "*bf16", "y_ptr": "*bf16", "out_ptr": "*fp32"}
    x = torch.ones(16, dtype=torch.bfloat16)
    with interpreted():
        arithmetic_kernel[(1,)](x, x, torch.empty(16), N=16)
        reduce_kernel[(1,)](x, torch.empty(1), N=16, WIDE=True)
    assert "ld.global" in build(Configuration("any", arithmetic_kernel, pointers, {"N": 16}), 90).asm["ptx"]
    del pointers["y_ptr"]
    assert build(Configuration("any", reduce_kernel, pointers, {"N": 16, "WIDE": True}), 90).asm["cubin"]
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        twice(1)
