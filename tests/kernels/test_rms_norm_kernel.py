"""RMSNorm's Triton kernels and operator against the reference: forward, every gradient, with and without a residual."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.rms_norm import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (5, 7), (2, 3, 64), (2, 1, 3, 33), (3, 2050), (0, 8)]


def draw(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, dtype=torch.float64), torch.rand(shape[-1], dtype=torch.float64) + 0.5


def both(norm, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the normed sum and the sum in one tensor, so that a gradient arrives at both."""
    return torch.stack(norm(x, residual, weight, EPS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errs_no_more_than_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    assert_kernel_as_precise_as(
        lambda x, w: op.rms_norm(x, w, EPS), lambda x, w: reference.rms_norm(x, w, EPS), draw(shape), dtype, device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_residual(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, weight = draw(shape)
    inputs = [x, torch.randn_like(x), weight]
    ours, theirs = (lambda *given, norm=norm: both(norm, *given) for norm in (op.add_rms_norm, reference.add_rms_norm))
    assert_kernel_as_precise_as(ours, theirs, inputs, dtype, device)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), columns=st.integers(1, 300), seed=st.integers(0, 99))
def test_any_shape(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = draw((rows, columns))
    inputs = [x, torch.randn_like(x), weight]
    ours, theirs = (lambda *given, norm=norm: both(norm, *given) for norm in (op.add_rms_norm, reference.add_rms_norm))
    assert_kernel_as_precise_as(ours, theirs, inputs, torch.bfloat16, "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_and_gradients(device: str) -> None:
    """The latent as it comes out of a split, a transposed tensor, and a transposed gradient."""
    wide = torch.randn(2, 3, 40, device=device)
    weight = torch.rand(32, device=device)
    tall = torch.randn(32, 6, device=device)
    with kernels_on(device):
        for x in (wide[..., :32], wide[..., 5:37], tall.t()):
            x = x.detach().requires_grad_()
            cotangent = torch.randn(x.shape[::-1], device=device).permute(*reversed(range(x.dim())))
            assert not x.is_contiguous()
            output = op.rms_norm(x, weight, EPS)
            (gradient,) = torch.autograd.grad(output, x, cotangent)
            expected = reference.rms_norm(x, weight, EPS)
            torch.testing.assert_close(output, expected)
            torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, cotangent)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_more_rows_than_a_pass_of_the_programs_takes(device: str) -> None:
    """Every program of the backward pass goes through several groups of rows."""
    inputs = draw((200, 260))
    assert_kernel_as_precise_as(
        lambda x, w: op.rms_norm(x, w, EPS),
        lambda x, w: reference.rms_norm(x, w, EPS),
        inputs,
        torch.float32,
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
def test_frozen_weight_gets_no_gradient(device: str) -> None:
    x = torch.randn(3, 16, device=device, requires_grad=True)
    weight = torch.rand(16, device=device)
    with kernels_on(device):
        op.rms_norm(x, weight, EPS).square().sum().backward()
    assert x.grad is not None and weight.grad is None
    expected = x.detach().clone().requires_grad_()
    reference.rms_norm(expected, weight, EPS).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_sum_gets_a_gradient(device: str) -> None:
    """As in a layer whose output nothing is made of."""
    x, residual = (torch.randn(3, 16, device=device, requires_grad=True) for _ in range(2))
    with kernels_on(device):
        total = op.add_rms_norm(x, residual, torch.ones(16, device=device), EPS)[1]
        gradients = torch.autograd.grad(total.sum(), (x, residual))
    assert all(torch.equal(gradient, torch.ones_like(x)) for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_weight_in_fp32_beside_bf16_inputs(device: str) -> None:
    x = torch.randn(3, 16, device=device, dtype=torch.bfloat16)
    weight = torch.rand(16, device=device)
    with kernels_on(device):
        output = op.rms_norm(x, weight, EPS)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, reference.rms_norm(x, weight, EPS), rtol=2**-8, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str) -> None:
    inputs = [tensor.to(device) for tensor in (torch.randn(50, 96), torch.randn(50, 96), torch.rand(96))]
    weight = inputs[2].requires_grad_()
    with kernels_on(device):
        runs = [torch.autograd.grad(both(op.add_rms_norm, *inputs).square().sum(), weight) for _ in range(3)]
    assert all(torch.equal(runs[0][0], run[0]) for run in runs[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("residual", [False, True])
def test_registered_as_torch_asks(residual: bool, device: str) -> None:
    x, other = (torch.randn(2, 3, 8, device=device, requires_grad=True) for _ in range(2))
    weight = torch.rand(8, device=device, requires_grad=True)
    with kernels_on(device):
        torch.library.opcheck(op._forward, (x, other if residual else None, weight, EPS))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device: str) -> None:
    x, weight = torch.randn(3, 8, device=device, requires_grad=True), torch.rand(8, device=device, requires_grad=True)
    compiled = torch.compile(lambda x, w: op.rms_norm(x, w, EPS).square(), backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        compiled(x, weight).sum().backward()
    gradients = torch.autograd.grad(reference.rms_norm(x, weight, EPS).square().sum(), (x, weight))
    torch.testing.assert_close((x.grad, weight.grad), gradients)


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside `kernels_on` the operator is the kernel; outside, on CPU, the reference."""
    monkeypatch.setattr(kernel, "forward", lambda x, *_: (x.clone(), x[..., :1].clone(), x.new_empty(0)))
    x = torch.full((2, 4), 3.0)
    with kernels_on("cpu"):
        assert torch.equal(op.rms_norm(x, torch.ones(4), EPS), x)
    torch.testing.assert_close(op.rms_norm(x, torch.ones(4), EPS), torch.ones(2, 4))


def test_wide_rows_and_float64_take_the_reference() -> None:
    assert not kernel.takes(torch.empty(1, kernel.MAX_COLUMNS + 1))
    x = torch.randn(2, 8, dtype=torch.float64)
    with kernels_on("cpu"):
        assert torch.equal(op.rms_norm(x, torch.ones(8).double(), EPS), reference.rms_norm(x, torch.ones(8), EPS))


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="rms_norm has no second derivative"):
        torch.autograd.grad(op.rms_norm(x, torch.ones(4), EPS).sum(), x, create_graph=True)


def test_what_does_not_fit_together_is_told() -> None:
    with pytest.raises(ValueError, match=r"x is \(2, 4\) torch.float32, residual \(2, 5\)"):
        op.add_rms_norm(torch.ones(2, 4), torch.ones(2, 5), torch.ones(4), EPS)
