"""Linear layers with frozen fp8 weights in Triton: as precise as PyTorch with the dequantised weight, both ways."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.block_fp8.reference import ROW_BLOCK, dequantize, dequantize_stacked, quantize_activations
from seeklet.modeling.kernels.linear import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.memory import tensors_kept
from tests.kernels.precision import FLOOR, relative_error

DTYPES = [torch.float32, torch.bfloat16]
# tokens, inputs, outputs, and how many matrices are stacked to the outputs
SHAPES = [(1, 1, 1, 1), (3, 72, 144, 1), (33, 300, 200, 2), (130, 257, 130, 1), (70, 128, 512, 2), (5, 144, 576, 1)]


def draw(inputs: int, outputs: int, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales of a weight, its blocks of different sizes."""
    codes = torch.randn(outputs, inputs).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(parts, -(-outputs // parts // 128), -(-inputs // 128)) / 100 + 0.001
    return codes, scale if parts > 1 else scale[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errs_no_more_than_pytorch_with_the_dequantised_weight(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> None:
    tokens, *sizes = shape
    codes, scale = draw(*sizes)
    weight = dequantize_stacked(codes, scale, dtype)
    assert_kernel_as_precise_as(
        lambda x: op.fp8_linear(x, codes.to(x.device), scale.to(x.device)),
        lambda x: F.linear(x, weight.to(x.dtype)),
        [torch.randn(tokens, sizes[0], dtype=torch.float64)],
        dtype,
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "shifts"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_operands_in_fp8(shape: tuple[int, int, int, int], native: bool, device: str) -> None:
    """Against the exact product of the numbers that the codes stand for."""
    tokens, *sizes = shape
    codes, scale = draw(*sizes)
    x, x_scale = quantize_activations(torch.randn(tokens, sizes[0]))
    exact = dequantize(x, x_scale, torch.float64, block=ROW_BLOCK) @ dequantize_stacked(codes, scale, torch.float64).t()
    x, x_scale, codes, scale = (tensor.to(device) for tensor in (x, x_scale, codes, scale))
    for dtype in DTYPES:
        with kernels_on(device):
            actual = kernel.forward_quantized(x, x_scale, codes, scale, dtype, native)
        # fp32 sums of exact products, of which the reference's are no better; and one rounding.
        assert relative_error(actual.cpu(), exact) <= 2 * FLOOR[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(3, 72, 144, 1), (33, 300, 200, 2)])
def test_by_shifts(shape: tuple[int, int, int, int], device: str) -> None:
    """As on GPUs that have no float8: the same bits."""
    tokens, *sizes = shape
    codes, scale = (tensor.to(device) for tensor in draw(*sizes))
    x = torch.randn(tokens, sizes[0], device=device, dtype=torch.bfloat16)
    grad = torch.randn(tokens, sizes[1], device=device, dtype=torch.bfloat16)
    with kernels_on(device):
        assert torch.equal(kernel.forward(x, codes, scale, True), kernel.forward(x, codes, scale, False))
        assert torch.equal(kernel.backward(grad, codes, scale, True), kernel.backward(grad, codes, scale, False))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantised_input_and_its_gradient(dtype: torch.dtype, device: str) -> None:
    codes, scale = (tensor.to(device) for tensor in draw(300, 144))
    x, cotangent = torch.randn(2, 5, 300, device=device, dtype=dtype), torch.randn(2, 5, 144, device=device)
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    with kernels_on(device):
        actual = op.fp8_linear_quantized(leaf, codes, scale)
        actual.backward(cotangent.to(dtype))
    expected = op.fp8_linear_quantized(other.cpu(), codes.cpu(), scale.cpu())
    expected.backward(cotangent.to(dtype).cpu())
    assert relative_error(actual.cpu(), expected.double()) <= 4 * FLOOR[dtype]
    assert leaf.grad is not None and other.grad is not None
    assert relative_error(leaf.grad.cpu(), other.grad.cpu().double()) <= 4 * FLOOR[dtype]
    # A code has 4 significant bits: the rounding is there, and no more.
    full = F.linear(x.double(), dequantize(codes, scale, torch.float64))
    assert 1e-3 < relative_error(actual, full) < 2**-4


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 150),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 150),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_shape(tokens: int, inputs: int, outputs: int, parts: int, seed: int) -> None:
    torch.manual_seed(seed)
    codes, scale = draw(inputs, outputs * parts, parts)
    weight = dequantize_stacked(codes, scale, torch.bfloat16)
    assert_kernel_as_precise_as(
        lambda x: op.fp8_linear(x, codes, scale),
        lambda x: F.linear(x, weight.to(x.dtype)),
        [torch.randn(tokens, inputs, dtype=torch.float64)],
        torch.bfloat16,
        "cpu",
    )


@pytest.mark.parametrize("device", DEVICES)
def test_strided_input_weight_and_gradient(device: str) -> None:
    codes, scale = (tensor.to(device) for tensor in draw(144, 200))
    codes = torch.stack((codes.view(torch.uint8),) * 2)[1].view(torch.float8_e4m3fn)
    for strided in (codes, codes.t().contiguous().t()):
        x = torch.randn(144, 6, device=device).t().requires_grad_()
        cotangent = torch.randn(200, 6, device=device).t()
        with kernels_on(device):
            output = op.fp8_linear(x, strided, scale)
            (gradient,) = torch.autograd.grad(output, x, cotangent)
        weight = dequantize(codes, scale, torch.float32)
        torch.testing.assert_close(output, F.linear(x, weight), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, cotangent @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [op.fp8_linear, op.fp8_linear_quantized])
@pytest.mark.parametrize("shape", [(144,), (0, 144), (2, 0, 144), (2, 3, 144)])
def test_any_leading_dimensions(shape: tuple[int, ...], function, device: str) -> None:
    codes, scale = (tensor.to(device) for tensor in draw(144, 40))
    x = torch.randn(shape, device=device)
    with kernels_on(device):
        output = function(x, codes, scale)
    assert output.shape == (*shape[:-1], 40)
    torch.testing.assert_close(output.cpu(), function(x.cpu(), codes.cpu(), scale.cpu()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", [op._forward, op._forward_quantized])
def test_registered_as_torch_asks(operator, device: str) -> None:
    codes, scale = (tensor.to(device) for tensor in draw(144, 40))
    x = torch.randn(5, 144, device=device, requires_grad=True)
    # The check of the schema compares inputs, which torch cannot do in float8.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    with kernels_on(device):
        torch.library.opcheck(operator, (x, codes, scale), test_utils=checks)


def test_compiled_without_a_graph_break() -> None:
    codes, scale = draw(144, 40)
    leaf, other = (torch.ones(5, 144, requires_grad=True) for _ in range(2))
    compiled = torch.compile(lambda x: op.fp8_linear(x, codes, scale).square(), backend="aot_eager", fullgraph=True)
    with kernels_on("cpu"):
        compiled(leaf).sum().backward()
    F.linear(other, dequantize(codes, scale, torch.float32)).square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_keeps_the_weight_as_it_is() -> None:
    codes, scale = draw(144, 40)
    x = torch.randn(5, 144, requires_grad=True)
    for function in (op.fp8_linear, op.fp8_linear_quantized):
        kept = tensors_kept(lambda function=function: function(x, codes, scale))
        assert sorted(tensor.dtype.itemsize for tensor in kept.values()) == [1, 4]


def test_autocast_is_obeyed() -> None:
    codes, scale = draw(144, 40)
    x = torch.randn(5, 144)
    with kernels_on("cpu"), torch.autocast("cpu", dtype=torch.bfloat16):
        assert op.fp8_linear(x, codes, scale).dtype == torch.bfloat16
        assert op.fp8_linear_quantized(x, codes, scale).dtype == torch.bfloat16


def test_the_kernel_is_what_runs_where_it_takes_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale = draw(144, 40)
    seen = []
    original = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *given: seen.append(given[0].dtype) or original(*given))
    with kernels_on("cpu"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            op.fp8_linear(torch.randn(5, 144, dtype=dtype), codes, scale)
    x = torch.randn(5, 144)
    assert torch.equal(op.fp8_linear(x, codes, scale), reference.fp8_linear_forward(x, codes, scale))
    assert seen == [torch.float32, torch.bfloat16]


def test_second_derivatives_are_refused() -> None:
    codes, scale = draw(144, 40)
    x = torch.randn(5, 144, requires_grad=True)
    with pytest.raises(RuntimeError, match="fp8_linear has no second derivative"):
        torch.autograd.grad(op.fp8_linear(x, codes, scale).sum(), x, create_graph=True)
