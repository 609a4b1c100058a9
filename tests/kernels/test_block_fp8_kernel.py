"""Block-fp8 in Triton against the reference, bit by bit, by the device's own conversions and by shifts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.block_fp8 import kernel, op, reference
from tests.kernels.devices import DEVICES, kernels_on

SHAPES = [(576, 256), (144, 448), (1, 1), (129, 127), (5, 300)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return weights whose blocks of 128 columns differ in size by powers of ten, a whole block of zeros among them."""
    sizes = 10.0 ** torch.randint(-6, 3, (shape[0], -(-shape[1] // 128)))
    weight = torch.randn(shape) * sizes.repeat_interleave(128, 1)[:, : shape[1]]
    if shape[0] > 128:
        weight[128:256, :128] = 0
    return weight.to(dtype)


def assert_same(actual: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Assert that codes, as bytes, and scales are the same, NaN included."""
    codes, other = (pair[0].cpu() for pair in (actual, expected))
    assert torch.equal(codes.isnan(), other.isnan())
    kept = ~other.isnan()
    assert torch.equal(codes.view(torch.uint8)[kept], other.view(torch.uint8)[kept])
    torch.testing.assert_close(actual[1].cpu(), expected[1].cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "shifts"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_there_and_back(shape: tuple[int, int], dtype: torch.dtype, native: bool, device: str) -> None:
    weight = draw(shape, dtype).to(device)
    with kernels_on(device):
        for power_of_two in (False, True):
            found = kernel.quantize(weight, power_of_two, native)
            assert_same(found, reference.quantize(weight, power_of_two))
            out = torch.empty(shape, dtype=dtype, device=device)
            kernel.dequantize(*found, out, native)
            assert torch.equal(out, reference.dequantize(*found, dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "shifts"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations(shape: tuple[int, int], native: bool, device: str) -> None:
    x = draw(shape, torch.bfloat16).to(device)
    with kernels_on(device):
        for power_of_two in (False, True):
            found = kernel.quantize_activations(x, power_of_two, native)
            assert_same(found, reference.quantize_activations(x, power_of_two))
            assert_same(found, reference.quantize(x, power_of_two, reference.ROW_BLOCK))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), native=st.booleans(), seed=st.integers(0, 99))
def test_any_shape(rows: int, columns: int, native: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight = draw((rows, columns), torch.bfloat16)
    with kernels_on("cpu"):
        assert_same(kernel.quantize(weight, native=native), reference.quantize(weight))
        assert_same(kernel.quantize_activations(weight, native=native), reference.quantize_activations(weight))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "shifts"])
def test_every_code_and_every_step_between_two(native: bool, device: str) -> None:
    """All 256 codes are decoded; and each value, what lies halfway to the next, and their neighbours are encoded."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)[None]
    scale = torch.full((1, 2), 0.37, device=device)
    with kernels_on(device):
        decoded = kernel.dequantize(codes, scale, torch.empty((1, 256), device=device), native)
    torch.testing.assert_close(decoded, codes.float() * 0.37, rtol=0, atol=0, equal_nan=True)
    assert decoded[0, 128].signbit()
    values = codes[0, :127].float()
    values = torch.cat((values, (values[1:] + values[:-1]) / 2, torch.rand(131, device=device) * 2**-6))
    up, down = (torch.full_like(values, way).to(device) for way in (float("inf"), 0.0))
    values = torch.cat((values, values.nextafter(up), values.nextafter(down)))
    # A first row of 448 makes the scale 1.
    weight = torch.stack((torch.full_like(values, 448.0), values, -values)).clamp(-448, 448)
    with kernels_on(device):
        assert_same(kernel.quantize(weight, native=native), reference.quantize(weight))


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides(device: str) -> None:
    weight = draw((200, 300)).to(device)
    with kernels_on(device):
        assert_same(op.quantize(weight.t()), reference.quantize(weight.t()))
        codes, scale = op.quantize(weight)
        out = torch.full((300, 200), float("nan"), device=device).t()
        assert op.dequantize_into(out, codes.t().contiguous().t(), scale.t().contiguous().t()) is out
        x = torch.stack((weight, weight), -1)[..., 0]
        assert_same(op.quantize_activations(x), reference.quantize_activations(weight))
    assert torch.equal(out, reference.dequantize(codes, scale, torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_cannot_be_stored(value: float, device: str) -> None:
    """Refused in weights; in activations NaN in the row and the 128 columns that it stands in."""
    weight = torch.ones(4, 300, device=device)
    weight[2, 150] = value
    with kernels_on(device):
        with pytest.raises(ValueError, match="infinity or a NaN"):
            op.quantize(weight)
        found = op.quantize_activations(weight)
    assert_same(found, reference.quantize_activations(weight))
    assert found[0][2, 150].float().isnan() and not found[0][2, 256:].float().isnan().any()
    assert not found[0][[0, 1, 3]].float().isnan().any()


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_and_tiny_values(device: str) -> None:
    weight = torch.zeros(128, 384, device=device)
    weight[:, 128:256] = 1e-44
    with kernels_on(device):
        codes, scale = op.quantize(weight)
    assert scale.tolist() == [[1.0, 2.0**-126, 1.0]]
    assert not codes.view(torch.uint8).any()


@pytest.mark.parametrize("device", DEVICES)
def test_registered_as_torch_asks(device: str) -> None:
    weight = draw((130, 140)).to(device)
    with kernels_on(device):
        codes, scale = op.quantize(weight)
        torch.library.opcheck(op._quantize, (weight, False))
        torch.library.opcheck(op._quantize_activations, (weight, False))
        # The check of the schema compares inputs, which torch cannot do in float8.
        checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(op._dequantize, (codes, scale, torch.bfloat16), test_utils=checks)


def test_the_operators_on_cpu_are_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_quantize", None)
    weight = draw((130, 140))
    assert_same(op.quantize(weight), reference.quantize(weight))
    assert_same(op.quantize_activations(weight), reference.quantize_activations(weight))
    assert torch.equal(op.dequantize(*op.quantize(weight)), reference.dequantize(*op.quantize(weight)))
    with kernels_on("cpu"):
        # Other dtypes and nothing at all take the reference too.
        assert_same(op.quantize(weight.double()), reference.quantize(weight.double()))
        assert op.quantize_activations(torch.empty(0, 128))[0].shape == (0, 128)


def test_scales_of_another_shape_are_refused() -> None:
    codes, _ = reference.quantize(draw((130, 140)))
    with kernels_on("cpu"), pytest.raises(ValueError, match="scales of shape"):
        op.dequantize(codes, torch.ones(1, 2))
