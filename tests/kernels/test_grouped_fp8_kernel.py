"""The kernels of experts with frozen fp8 weights: as their values dequantised, and with both operands in fp8."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.grouped_experts import kernel as experts
from seeklet.modeling.kernels.grouped_experts import products, tiling
from seeklet.modeling.kernels.grouped_fp8 import kernel, op, reference
from seeklet.modeling.kernels.grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.precision import FLOOR, gradient, relative_error
from tests.kernels.test_grouped_experts import Case, plain
from tests.kernels.test_grouped_fp8 import dequantized, draw

DTYPES = [torch.float32, torch.bfloat16]
CHIPS = [80, 90]
# Blocks that are not full, tiles that begin in gate's rows and end in up's, an expert that nobody takes; whole ones.
ODD, EVEN = Case(9, 140, 4, 2, 133, hit=(0, 2, 3)), Case(20, 128, 2, 1, 128)


def on(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


def compare(case: Case, dtype: torch.dtype, device: str) -> None:
    indices, stored, inputs = draw(case)
    projections = dequantized(stored, dtype)
    assert_kernel_as_precise_as(
        lambda x, weights: grouped_fp8(x, indices.to(device), weights, *on(device, *stored)),
        lambda x, weights: plain(indices, x, weights, *(p.to(x.dtype) for p in projections)),
        inputs,
        dtype,
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errs_no_more_than_with_the_weights_dequantised(
    dtype: torch.dtype, capability: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "chip", lambda tensor: capability)
    monkeypatch.setattr(experts, "block_rows", lambda *_: 16)
    monkeypatch.setattr(tiling, "of_rows", lambda *_: tiling.Tiling(16, 64, 64, 4, 2, group=2))
    compare(ODD, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [Case(1, 1, 1, 1, 1), Case(40, 128, 2, 2, 64)], ids=["all ones", "as tiled"])
def test_extreme_sizes(case: Case, device: str) -> None:
    compare(case, torch.float32, device)


@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.integers(8, 12), st.integers(8, 150), st.integers(1, 4), st.integers(8, 140))
def test_any_sizes(tokens: int, hidden: int, experts: int, width: int) -> None:
    torch.manual_seed(tokens)
    compare(Case(tokens, hidden, experts, min(2, experts), width), torch.bfloat16, "cpu")
    both_in_fp8(Case(tokens, hidden, experts, min(2, experts), width), torch.bfloat16, "cpu")


def both_in_fp8(case: Case, dtype: torch.dtype, device: str) -> None:
    """Assert that the kernel makes the reference's own rounding errors, not others of their size."""
    indices, stored, inputs = draw(case)
    x, weights = (tensor.to(dtype) for tensor in inputs)
    expected = reference.forward_quantized(x, indices, weights, *stored, save=True)
    with kernels_on(device):
        actual = kernel.forward_quantized(*on(device, x, indices, weights, *stored), save=True)
    full = reference.forward(x.double(), indices, weights.double(), *stored, save=True)
    assert torch.equal(actual[2].cpu(), expected[2]) and torch.equal(actual[3].cpu(), expected[3])
    # Gate and up are sums of the same products; the activation is rounded anew, and at a tie another way.
    assert relative_error(actual[1].cpu(), expected[1].double()) <= 2 * FLOOR[dtype]
    apart = relative_error(actual[0].cpu(), expected[0].double())
    assert apart <= 4 * FLOOR[dtype] + 0.2 * relative_error(expected[0], full[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [ODD, EVEN, Case(1, 1, 1, 1, 1)], ids=["odd", "even", "all ones"])
def test_both_operands_in_fp8(
    case: Case, dtype: torch.dtype, capability: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":
        monkeypatch.setattr(products, "chip", lambda tensor: capability)
    both_in_fp8(case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_many_rows_an_expert_in_fp8(device: str) -> None:
    """Tiles of 64 rows, and more than one of them."""
    both_in_fp8(Case(70, 128, 1, 1, 128), torch.bfloat16, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [grouped_fp8, grouped_fp8_quantized])
def test_strided_inputs_and_an_expanded_gradient(function, device: str) -> None:
    indices, stored, inputs = draw(ODD)
    expected, actual = [], []
    for results, where in ((expected, "cpu"), (actual, device)):
        x, weights = (t.float().mT.contiguous().mT.to(where).requires_grad_() for t in inputs)
        assert not x.is_contiguous()
        # Experts, rows and scales of a larger stack.
        strided = [torch.stack((t, t), 1)[:, 0].to(where) for t in stored]
        if results is actual:
            with kernels_on(device):
                output = function(x, indices.to(where), weights, *strided)
                results += [output, *torch.autograd.grad(output.sum(), (x, weights))]
        else:
            output = function(x, indices, weights, *strided)
            results += [output, *torch.autograd.grad(output.sum(), (x, weights))]
    tolerance = 1e-6 if function is grouped_fp8 else 1e-2
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one.cpu(), other.double()) <= tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [grouped_fp8, grouped_fp8_quantized])
def test_no_tokens_and_the_same_bits_every_time(function, device: str) -> None:
    indices, stored, inputs = draw(Case(20, 16, 3, 2, 8))
    stored = on(device, *stored)
    x, weights = (tensor.float().to(device).requires_grad_() for tensor in inputs)
    runs = []
    with kernels_on(device):
        for _ in range(2):
            output = function(x, indices.to(device), weights, *stored)
            runs.append([output, *torch.autograd.grad(output.square().sum(), (x, weights))])
        none = function(x[:0], indices[:0].to(device), weights[:0], *stored)
        none.sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert none.shape == (0, 16) and not gradient(x).any()


@pytest.mark.parametrize("device", DEVICES)
def test_launches_do_not_depend_on_the_number_of_experts(device: str) -> None:
    """No loop over experts: as many launches for 2 as for 12, forward and backward."""
    launched = []
    for count in (2, 12):
        indices, stored, inputs = draw(Case(6, 16, count, 2, 8))
        x, weights = (tensor.float().to(device).requires_grad_() for tensor in inputs)
        with kernels_on(device) as launches:
            grouped_fp8(x, indices.to(device), weights, *on(device, *stored)).sum().backward()
        launched.append(launches and sum(launches.values()))
    assert launched[0] == launched[1]


def test_what_is_left_to_the_reference() -> None:
    x, codes = torch.randn(2, 8), torch.zeros(2, 8, 8).to(torch.float8_e4m3fn)
    assert kernel.takes(x, codes, codes) and kernel.takes(x.bfloat16(), codes, codes)
    assert not kernel.takes(x.double(), codes, codes) and not kernel.takes(x, codes, codes[:0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forward", [op._forward, op._forward_quantized])
def test_registered_as_torch_asks(forward, device: str) -> None:
    indices, stored, inputs = draw(Case(3, 16, 4, 2, 8))
    x, weights = (tensor.float().to(device).requires_grad_() for tensor in inputs)
    checks = ("test_autograd_registration", "test_faketensor")
    with kernels_on(device):
        arguments = (x, indices.to(device), weights, *on(device, *stored), True)
        torch.library.opcheck(forward, arguments, test_utils=checks)
