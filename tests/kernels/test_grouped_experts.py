"""The routed experts against a sum written token by token: forward, every gradient, and what is kept for backward."""

# T tokens, H hidden, E experts, K experts a token, I expert width

from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.grouped_experts import op, reference
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from seeklet.modeling.kernels.linear import reference as linear
from tests.kernels.memory import tensors_kept
from tests.kernels.precision import FLOOR, assert_as_precise_as, gradient, relative_error


class Case(NamedTuple):
    """A routing: sizes, and which experts may be hit."""

    T: int
    H: int
    E: int
    K: int
    I: int  # noqa: E741 - the paper's letter
    hit: tuple[int, ...] | None = None


CASES = {
    "even sizes": Case(24, 16, 6, 2, 8),
    # Enough for whole row blocks of oneDNN, and some more.
    "many rows an expert": Case(70, 16, 3, 2, 8),
    "one token": Case(1, 16, 6, 2, 8),
    "one expert a token": Case(9, 16, 4, 1, 8),
    "all experts for every token": Case(5, 16, 4, 4, 8),
    "empty experts, first and last too": Case(17, 16, 8, 2, 8, hit=(1, 4, 5)),
    "all tokens to one expert": Case(12, 16, 5, 1, 8, hit=(3,)),
}
# Rows of no whole 16 bytes, which only the loop takes.
ODD_CASES = {"odd sizes": Case(7, 13, 5, 3, 5), "widths of one": Case(3, 1, 2, 1, 1)}


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send products of any size to oneDNN, as large ones are."""
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)


def draw(case: Case) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return indices (T, K), no expert twice in a row, and float64 (x, weights, gate_up_proj, down_proj)."""
    experts = torch.tensor(case.hit or range(case.E))
    indices = torch.stack([experts[torch.randperm(len(experts))[: case.K]] for _ in range(case.T)])
    shapes = ((case.T, case.H), (case.T, case.K), (case.E, 2 * case.I, case.H), (case.E, case.H, case.I))
    return indices, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def plain(indices: torch.Tensor, x, weights, gate_up_proj, down_proj) -> torch.Tensor:
    """Equation 12 of the DeepSeek-V3 report without residual and shared experts, token by token."""
    rows = []
    for token, chosen in enumerate(indices.tolist()):
        row = torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))
        for k, expert in enumerate(chosen):
            gate, up = (gate_up_proj[expert] @ x[token]).chunk(2)
            row = row + weights[token, k] * (down_proj[expert] @ (F.silu(gate) * up))
        rows.append(row.to(x.dtype))
    return torch.stack(rows)


@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
def test_loop_gradients_are_those_of_finite_differences(name: str) -> None:
    indices, inputs = draw((CASES | ODD_CASES)[name])
    leaves = [tensor.mul_(0.3).requires_grad_() for tensor in inputs]

    def run(x, weights, gate_up_proj, down_proj):
        return grouped_experts(x, indices, weights, gate_up_proj, down_proj)

    torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errs_no_more_than_the_plain_sum(name: str, dtype: torch.dtype) -> None:
    indices, inputs = draw((CASES | ODD_CASES)[name])
    assert_as_precise_as(
        lambda x, *rest: grouped_experts(x, indices, *rest), lambda x, *rest: plain(indices, x, *rest), inputs, dtype
    )


WAYS = {
    "loop": (reference.forward_loop, reference.backward_loop),
    "grouped": (reference.forward_grouped, reference.backward_grouped),
}


def run_way(
    way: str, indices: torch.Tensor, inputs: list[torch.Tensor], needs_weights: bool = True
) -> list[torch.Tensor]:
    """Return output, gate_up, rows and counts, then the gradients of the four inputs under ones."""
    forward, backward = WAYS[way]
    x, weights, gate_up_proj, down_proj = inputs
    output, gate_up, rows, counts = forward(x, indices, weights, gate_up_proj, down_proj, True)
    gradients = backward(torch.ones_like(x), x, weights, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights)
    return [output, gate_up, rows, counts, *gradients]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_equal_the_loop(name: str, dtype: torch.dtype) -> None:
    """The CUDA path, run here on CPU: forward, what it keeps, and all gradients."""
    indices, inputs = draw(CASES[name])
    inputs = [tensor.to(dtype) for tensor in inputs]
    grouped, loop = run_way("grouped", indices, inputs), run_way("loop", indices, inputs)
    # One rounding of each product, in bf16 of 2^-8, may fall the other way.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert torch.equal(grouped[2], loop[2]) and torch.equal(grouped[3], loop[3])
    for position, (actual, expected) in enumerate(zip(grouped, loop, strict=True)):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert relative_error(actual, expected.double()) <= tolerance, position


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_frozen_experts_get_no_gradient_and_the_input_the_same(way: str, dtype: torch.dtype) -> None:
    indices, inputs = draw(CASES["even sizes"])
    inputs = [tensor.to(dtype) for tensor in inputs]
    trained, frozen = run_way(way, indices, inputs), run_way(way, indices, inputs, needs_weights=False)
    assert torch.equal(trained[4], frozen[4]) and torch.equal(trained[5], frozen[5])
    assert frozen[6].numel() == frozen[7].numel() == 0


def test_frozen_experts_through_autograd() -> None:
    indices, (x, weights, gate_up_proj, down_proj) = draw(CASES["even sizes"])
    x, weights = x.requires_grad_(), weights.requires_grad_()
    grouped_experts(x, indices, weights, gate_up_proj, down_proj).square().sum().backward()
    actual = x.grad, weights.grad
    x.grad = weights.grad = None
    plain(indices, x, weights, gate_up_proj, down_proj).square().sum().backward()
    torch.testing.assert_close(actual, (x.grad, weights.grad))


def test_only_one_of_the_two_projections_trained() -> None:
    indices, (x, weights, gate_up_proj, down_proj) = draw(CASES["even sizes"])
    down_proj.requires_grad_()
    grouped_experts(x, indices, weights, gate_up_proj, down_proj).square().sum().backward()
    actual, down_proj.grad = down_proj.grad, None
    plain(indices, x, weights, gate_up_proj, down_proj).square().sum().backward()
    torch.testing.assert_close(actual, down_proj.grad)
    assert gate_up_proj.grad is None


def test_empty_experts_get_a_gradient_of_zeros() -> None:
    indices, inputs = draw(CASES["empty experts, first and last too"])
    x, weights, gate_up_proj, down_proj = (tensor.requires_grad_() for tensor in inputs)
    grouped_experts(x, indices, weights, gate_up_proj, down_proj).sum().backward()
    empty = [0, 2, 3, 6, 7]
    assert torch.equal(gradient(gate_up_proj)[empty], torch.zeros_like(gate_up_proj[empty]))
    assert torch.equal(gradient(down_proj)[empty], torch.zeros_like(down_proj[empty]))


def test_weights_in_fp32_beside_a_bf16_input() -> None:
    """As the router gives them: their gradient is fp32, and they are not rounded to bf16 first."""
    indices, (x, weights, gate_up_proj, down_proj) = draw(CASES["even sizes"])
    leaves = [x.bfloat16(), weights.float(), gate_up_proj.bfloat16(), down_proj.bfloat16()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = grouped_experts(leaves[0], indices, *leaves[1:])
    output.sum().backward()
    assert output.dtype == gradient(leaves[0]).dtype == torch.bfloat16
    assert gradient(leaves[1]).dtype == torch.float32
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    plain(indices, *exact).sum().backward()
    assert relative_error(gradient(leaves[1]), gradient(exact[1])) <= 1e-2


def test_non_contiguous_inputs_and_expanded_gradient() -> None:
    indices, inputs = draw(CASES["even sizes"])
    leaves = [tensor.mT.contiguous().mT.requires_grad_() for tensor in inputs]
    assert not any(leaf.is_contiguous() for leaf in leaves)
    # The gradient of a sum is one number, expanded.
    actual = torch.autograd.grad(grouped_experts(leaves[0], indices, *leaves[1:]).sum(), leaves)
    expected = torch.autograd.grad(plain(indices, *leaves).sum(), leaves)
    torch.testing.assert_close(actual, expected)


def test_no_tokens() -> None:
    shapes = ((0, 16), (0, 2), (6, 16, 16), (6, 16, 8))
    x, weights, gate_up_proj, down_proj = (torch.randn(shape, requires_grad=True) for shape in shapes)
    indices = torch.empty(0, 2, dtype=torch.int64)
    output = grouped_experts(x, indices, weights, gate_up_proj, down_proj)
    output.sum().backward()
    assert output.shape == (0, 16)
    assert torch.equal(gradient(gate_up_proj), torch.zeros_like(gate_up_proj))


def test_sorting_is_stable() -> None:
    rows, counts = reference.sort_rows(torch.tensor([[2, 0], [0, 2], [2, 1]]), 4)
    # Row token * 2 + k: expert 0 gets rows 1 and 2, expert 1 row 5, expert 2 rows 0, 3 and 4.
    assert rows.tolist() == [1, 2, 5, 0, 3, 4]
    assert counts.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("save", [True, False])
def test_forward_operator_is_sound(save: bool) -> None:
    """Schema, fake tensors, autograd registration and compilation, by torch's own checks."""
    indices, inputs = draw(CASES["even sizes"])
    x, *rest = (tensor.float().requires_grad_(save) for tensor in inputs)
    torch.library.opcheck(op._forward, (x, indices, *rest, save))


@pytest.mark.parametrize("needs_weights", [True, False])
def test_backward_operator_is_sound(needs_weights: bool) -> None:
    indices, inputs = draw(CASES["even sizes"])
    x, weights, gate_up_proj, down_proj = (tensor.float() for tensor in inputs)
    _, *kept = reference.forward_loop(x, indices, weights, gate_up_proj, down_proj, True)
    torch.library.opcheck(
        op._backward, (torch.randn_like(x), x, weights, gate_up_proj, down_proj, *kept, needs_weights)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_little_more_than_the_input_and_the_gate_up_output(dtype: torch.dtype) -> None:
    """At most 1.15 times x (T, H), weights (T, K) and gate_up (T*K, 2I); the parameters themselves are no cost."""
    case = Case(64, 64, 8, 4, 32)
    indices, inputs = draw(case)
    x, weights, gate_up_proj, down_proj = (tensor.to(dtype).requires_grad_() for tensor in inputs)
    kept = tensors_kept(lambda: grouped_experts(x, indices, weights, gate_up_proj, down_proj))
    for parameter in (gate_up_proj, down_proj):
        assert kept.pop(parameter.data_ptr()).shape == parameter.shape
    nbytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    numbers = case.T * case.H + case.T * case.K + case.T * case.K * 2 * case.I
    assert numbers * x.itemsize <= nbytes <= 1.15 * numbers * x.itemsize


def test_keeps_nothing_without_gradients() -> None:
    indices, (x, weights, gate_up_proj, down_proj) = draw(CASES["even sizes"])
    _, gate_up, _, _ = reference.forward_loop(x, indices, weights, gate_up_proj, down_proj, False)
    assert gate_up.numel() == 0
    x, gate_up_proj, down_proj = x.float(), gate_up_proj.float(), down_proj.float()
    _, gate_up, _, _ = reference.forward_grouped(x, indices, weights.float(), gate_up_proj, down_proj, False)
    assert gate_up.numel() == 0 and gate_up.untyped_storage().nbytes() == 0


def test_compiled_equals_eager() -> None:
    indices, inputs = draw(CASES["even sizes"])
    results = []
    for run in (grouped_experts, torch.compile(grouped_experts, backend="aot_eager", fullgraph=True)):
        x, *rest = (tensor.clone().requires_grad_() for tensor in inputs)
        output = run(x, indices, *rest)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), [x, *rest])])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) <= FLOOR[torch.float64]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
def test_on_a_gpu_equals_the_loop_on_cpu(name: str) -> None:
    indices, inputs = draw((CASES | ODD_CASES)[name])

    def on_gpu(x, *rest):
        moved = [tensor.cuda() for tensor in (x, *rest)]
        return grouped_experts(moved[0], indices.cuda(), *moved[1:]).cpu()

    assert_as_precise_as(on_gpu, lambda x, *rest: plain(indices, x, *rest), inputs, torch.bfloat16)
