"""The routed experts with frozen fp8 weights against those with dequantised weights, and rounded to fp8 throughout."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.block_fp8.reference import dequantize_stacked
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from seeklet.modeling.kernels.grouped_fp8 import op, reference
from seeklet.modeling.kernels.grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from tests.kernels.memory import largest_tensor_made, tensors_kept
from tests.kernels.precision import FLOOR, assert_as_precise_as, gradient, relative_error
from tests.kernels.test_grouped_experts import CASES, Case, plain
from tests.kernels.test_grouped_experts import draw as draw_dense

# Blocks that are not full, on either side; gate's and up's do not cross the border.
ODD = Case(7, 140, 5, 3, 133)


def draw(case: Case) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Return indices (T, K); codes and scales of gate_up and of down; float64 x and weights."""
    indices, inputs = draw_dense(case)
    stored = []
    for weight, parts in zip(inputs[2:], (2, 1), strict=True):
        rows, columns = weight.shape[1] // parts, weight.shape[2]
        shape = (case.E, *((2,) if parts == 2 else ()), -(-rows // 128), -(-columns // 128))
        stored += [weight.mul(100).to(torch.float8_e4m3fn), torch.rand(shape) / 100 + 0.003]
    return indices, stored, inputs[:2]


def dequantized(stored: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return gate_up_proj and down_proj in `dtype`."""
    pairs = (stored[:2], stored[2:])
    return [
        torch.stack([dequantize_stacked(c, s, dtype) for c, s in zip(codes, scale, strict=True)])
        for codes, scale in pairs
    ]


@pytest.mark.parametrize("case", [*CASES.values(), ODD], ids=[*CASES, "odd sizes"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errs_no_more_than_with_the_weights_dequantised(case: Case, dtype: torch.dtype) -> None:
    indices, stored, inputs = draw(case)
    projections = dequantized(stored, dtype)
    assert_as_precise_as(
        lambda x, weights: grouped_fp8(x, indices, weights, *stored),
        lambda x, weights: plain(indices, x, weights, *(p.to(x.dtype) for p in projections)),
        inputs,
        dtype,
    )


def test_rounded_where_the_report_says_and_nowhere_else() -> None:
    """The formula, token by token, in float64; its gradient is that without rounding, at the rounded gate and up."""
    indices, stored, (x, weights) = draw(ODD)
    gate_up_proj, down_proj = dequantized(stored, torch.float64)
    actual = grouped_fp8_quantized(x, indices, weights, *stored)
    rounded_x = reference.rounded(x)
    for token, chosen in enumerate(indices.tolist()):
        row = torch.zeros(ODD.H, dtype=torch.float64)
        for k, expert in enumerate(chosen):
            gate, up = (gate_up_proj[expert] @ rounded_x[token]).chunk(2)
            active = reference.rounded((F.silu(gate) * up * weights[token, k])[None])[0]
            row += down_proj[expert] @ active
        assert relative_error(actual[token], row) <= 1e-12
    # A code has 4 significant bits: the rounding is there, and no more.
    assert 1e-3 < relative_error(actual, grouped_fp8(x, indices, weights, *stored)) < 2**-4


def test_the_gradient_passes_by_the_rounding() -> None:
    indices, stored, inputs = draw(ODD)
    x, weights = (tensor.requires_grad_() for tensor in inputs)
    grads = [
        torch.autograd.grad(run(x, indices, weights, *stored).square().sum(), (x, weights))
        for run in (grouped_fp8_quantized, grouped_fp8)
    ]
    for rounded, full in zip(*grads, strict=True):
        assert 1e-3 < relative_error(rounded, full) < 0.2


def test_keeps_the_gate_up_output_and_no_more() -> None:
    """At most 1.15 times weights (T, K) and gate_up (T*K, 2I): neither the tokens nor a weight in another dtype."""
    case = Case(64, 64, 8, 4, 32)
    indices, stored, inputs = draw(case)
    x, weights = (tensor.bfloat16().requires_grad_() for tensor in inputs)
    for run in (grouped_fp8, grouped_fp8_quantized):
        kept = tensors_kept(lambda run=run: run(x, indices, weights, *stored))
        for parameter in stored:
            assert kept.pop(parameter.data_ptr()).dtype == parameter.dtype
        nbytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        numbers = case.T * case.K + case.T * case.K * 2 * case.I
        assert numbers * x.itemsize <= nbytes <= 1.15 * numbers * x.itemsize


def test_makes_no_tensor_of_the_size_of_the_stack() -> None:
    case = Case(4, 64, 32, 2, 64)
    indices, stored, inputs = draw(case)
    x, weights = (tensor.bfloat16() for tensor in inputs)
    for run, inside in ((grouped_fp8, op._forward), (grouped_fp8_quantized, op._forward_quantized)):
        largest = largest_tensor_made(lambda run=run: run(x, indices, weights, *stored), [inside])
        assert largest <= 2 * case.I * case.H < stored[0].numel()


@pytest.mark.parametrize("forward", [op._forward, op._forward_quantized])
@pytest.mark.parametrize("save", [True, False])
def test_operators_are_sound(forward: Any, save: bool) -> None:
    indices, stored, inputs = draw(CASES["even sizes"])
    x, weights = (tensor.float().requires_grad_(save) for tensor in inputs)
    # The check of the schema compares inputs, which torch cannot do in float8.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(forward, (x, indices, weights, *stored, save), test_utils=checks)
    _, *kept = reference.forward(x.detach(), indices, weights.detach(), *stored, save=True)
    torch.library.opcheck(
        op._backward, (torch.randn(x.shape), weights.detach(), *stored, *kept), test_utils="test_faketensor"
    )


def test_no_tokens_and_no_gradients() -> None:
    _, stored, _ = draw(CASES["even sizes"])
    x, weights = torch.randn(0, 16, requires_grad=True), torch.rand(0, 2, requires_grad=True)
    for run in (grouped_fp8, grouped_fp8_quantized):
        output = run(x, torch.empty(0, 2, dtype=torch.int64), weights, *stored)
        output.sum().backward()
        assert output.shape == gradient(x).shape == (0, 16)
    indices, stored, inputs = draw(CASES["even sizes"])
    x, weights = (tensor.bfloat16() for tensor in inputs)
    for forward in (reference.forward, reference.forward_quantized):
        output, gate_up, _, _ = forward(x, indices, weights, *stored, save=False)
        assert output.isfinite().all() and gate_up.shape == (0, 16) and gate_up.untyped_storage().nbytes() == 0


def test_under_autocast_as_with_inputs_in_its_dtype() -> None:
    indices, stored, inputs = draw(CASES["even sizes"])
    x, weights = (tensor.float() for tensor in inputs)
    expected = grouped_fp8(x.bfloat16(), indices, weights, *stored)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grouped_fp8(x, indices, weights, *stored), expected)


def test_compiled_equals_eager() -> None:
    indices, stored, inputs = draw(CASES["even sizes"])
    results = []
    for run in (grouped_fp8, torch.compile(grouped_fp8, backend="aot_eager", fullgraph=True)):
        x, weights = (tensor.clone().requires_grad_() for tensor in inputs)
        output = run(x, indices, weights, *stored)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), (x, weights))])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) <= FLOOR[torch.float64]


def test_experts_in_fp8_are_experts_with_other_weights() -> None:
    """Bit for bit those of `grouped_experts`."""
    indices, stored, inputs = draw(ODD)
    x, weights = (tensor.bfloat16() for tensor in inputs)
    projections = dequantized(stored, torch.bfloat16)
    assert torch.equal(grouped_fp8(x, indices, weights, *stored), grouped_experts(x, indices, weights, *projections))
