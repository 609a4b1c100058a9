"""Split low-rank terms of the routed experts against W + s B A built in full: forward, every gradient, memory."""

# T tokens, H hidden, E experts, K experts a token, I expert width, r rank

from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.block_fp8.reference import dequantize, quantize
from seeklet.modeling.kernels.grouped_lora import op
from seeklet.modeling.kernels.grouped_lora.op import LowRank, grouped_lora
from seeklet.modeling.kernels.linear import reference as linear
from tests.kernels.memory import largest_tensor_made, tensors_kept
from tests.kernels.precision import assert_as_precise_as, gradient, outputs_and_gradients, relative_error


class Case(NamedTuple):
    """A routing: sizes, rank, and which experts may be hit."""

    T: int
    H: int
    E: int
    K: int
    I: int  # noqa: E741 - the paper's letter
    r: int
    hit: tuple[int, ...] | None = None


CASES = {
    "even sizes": Case(24, 16, 6, 2, 8, r=4),
    # Enough for whole row blocks of oneDNN, and some more.
    "many rows an expert": Case(70, 16, 3, 2, 8, r=8),
    "rank of one": Case(9, 16, 6, 2, 8, r=1),
    "one token": Case(1, 32, 8, 6, 16, r=3),
    "empty experts, first and last too": Case(17, 16, 8, 2, 8, r=3, hit=(1, 4, 5)),
    "all tokens to one expert": Case(12, 16, 5, 1, 8, r=2, hit=(3,)),
}
# Rows of no whole 16 bytes, which only the loop takes.
ODD_CASES = {"odd sizes": Case(7, 13, 5, 3, 5, r=3), "widths of one": Case(40, 1, 4, 2, 1, r=1)}
SCALINGS = (0.5, 1.75)


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send products of any size to oneDNN, as large ones are."""
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)


def draw(case: Case) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Return indices (T, K), no expert twice in a row, float64 projections, and float64 x, weights and factors."""
    experts = torch.tensor(case.hit or range(case.E))
    indices = torch.stack([experts[torch.randperm(len(experts))[: case.K]] for _ in range(case.T)])
    projections = ((case.E, 2 * case.I, case.H), (case.E, case.H, case.I))
    up = (case.E * case.r, case.H), (2 * case.I, case.r * case.E)
    down = (case.E * case.r, case.I), (case.H, case.r * case.E)
    shapes = ((case.T, case.H), (case.T, case.K), *up, *down)
    drawn = ([torch.randn(shape, dtype=torch.float64) for shape in group] for group in (projections, shapes))
    return indices, next(drawn), next(drawn)


def split(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    projections: Any,
    factors: Any,
    dropout: float = 0.0,
    scales: Any = (None, None),
) -> torch.Tensor:
    """Return `grouped_lora` of two projections and the factors (A, B, A, B) of both."""
    a, b, a_down, b_down = factors
    gate_up, down = LowRank(a, b, SCALINGS[0], dropout), LowRank(a_down, b_down, SCALINGS[1], dropout)
    return grouped_lora(x, indices, weights, projections[0], projections[1], gate_up, down, *scales)


def delta(a: torch.Tensor, b: torch.Tensor, num_experts: int, scaling: float) -> torch.Tensor:
    """Return s B A (E, out, in), by PEFT's own formula for parameters."""
    a, b = a.reshape(num_experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, num_experts)
    return torch.einsum("o r e, e r i -> e o i", b, a) * scaling


def plain(indices, projections, x, weights, *factors, keep=(None, None), dropout: float = 0.0) -> torch.Tensor:
    """The experts with W + s B A built in full, token by token; A's input is dropped where `keep` says so."""
    num_experts, top_k = len(projections[0]), indices.shape[1]
    deltas = [delta(a, b, num_experts, s) for a, b, s in zip(factors[::2], factors[1::2], SCALINGS, strict=True)]
    built = [projection + added for projection, added in zip(projections, deltas, strict=True)]
    # Row t * K + k has this place among the rows sorted by expert.
    place = indices.flatten().sort(stable=True).indices.argsort()
    rows = []
    for token, chosen in enumerate(indices.tolist()):
        row = torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))
        for k, expert in enumerate(chosen):
            hidden = x[token]
            for i, sorted_row in ((0, token), (1, int(place[token * top_k + k]))):
                if keep[i] is None:
                    hidden = built[i][expert] @ hidden
                else:
                    kept = hidden * keep[i][sorted_row] / (1 - dropout)
                    hidden = projections[i][expert] @ hidden + deltas[i][expert] @ kept
                if i == 0:
                    gate, up = hidden.chunk(2)
                    hidden = F.silu(gate) * up
            row = row + weights[token, k] * hidden
        rows.append(row.to(x.dtype))
    return torch.stack(rows)


@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errs_no_more_than_with_the_sum_built(name: str, dtype: torch.dtype) -> None:
    """Output and the gradients of x, weights, and all four factors."""
    indices, projections, inputs = draw((CASES | ODD_CASES)[name])
    projections = [p.to(dtype).double() for p in projections]

    def ours(x, weights, *factors):
        return split(x, indices, weights, [p.to(x.dtype) for p in projections], factors)

    def theirs(x, weights, *factors):
        return plain(indices, [p.to(x.dtype) for p in projections], x, weights, *factors)

    assert_as_precise_as(ours, theirs, inputs, dtype)


@pytest.mark.parametrize("name", CASES)
def test_dropout_falls_on_the_input_of_a_only(name: str) -> None:
    """In float64 against the sum built in full, with the masks that the same seed draws."""
    indices, projections, inputs = draw(CASES[name])
    case, dropout = CASES[name], 0.4

    def ours(x, weights, *factors):
        torch.manual_seed(5)
        return split(x, indices, weights, projections, factors, dropout)

    torch.manual_seed(5)
    keep = [torch.rand(shape) >= dropout for shape in ((case.T, case.H), (case.T * case.K, case.I))]

    def theirs(x, weights, *factors):
        return plain(indices, projections, x, weights, *factors, keep=keep, dropout=dropout)

    actual = outputs_and_gradients(ours, inputs, torch.float64)
    for one, other in zip(actual, outputs_and_gradients(theirs, inputs, torch.float64), strict=True):
        assert relative_error(one, other) <= 1e-12
    without = outputs_and_gradients(lambda x, w, *f: plain(indices, projections, x, w, *f), inputs, torch.float64)
    assert relative_error(actual[0], without[0]) > 1e-2


def test_only_one_factor_trained() -> None:
    """As after PEFT froze an adapter but for one tensor: its gradient alone arrives."""
    indices, projections, inputs = draw(CASES["even sizes"])
    x, weights, *factors = inputs
    factors[3].requires_grad_()
    split(x, indices, weights, projections, factors).square().sum().backward()
    actual, factors[3].grad = factors[3].grad, None
    plain(indices, projections, x, weights, *factors).square().sum().backward()
    torch.testing.assert_close(actual, factors[3].grad)
    assert [factor.grad for factor in factors[:3]] == [None, None, None]


def test_empty_experts_get_a_gradient_of_zeros() -> None:
    """Not None: DistributedDataParallel waits for every parameter."""
    case = CASES["empty experts, first and last too"]
    indices, projections, inputs = draw(case)
    x, weights, *factors = (tensor.requires_grad_() for tensor in inputs)
    split(x, indices, weights, projections, factors).sum().backward()
    hit = set(case.hit or ())
    for a, b in (factors[:2], factors[2:]):
        per_expert = gradient(a).view(case.E, case.r, -1).abs().amax((1, 2)) > 0
        assert set(per_expert.nonzero().flatten().tolist()) == hit
        per_expert = gradient(b).view(-1, case.r, case.E).abs().amax((0, 1)) > 0
        assert set(per_expert.nonzero().flatten().tolist()) == hit


def test_no_tokens() -> None:
    _, projections, inputs = draw(CASES["even sizes"])
    x, weights, *factors = (tensor.float().requires_grad_() for tensor in (*(t[:0] for t in inputs[:2]), *inputs[2:]))
    indices = torch.empty(0, 2, dtype=torch.int64)
    output = split(x, indices, weights, [p.float() for p in projections], factors, 0.5)
    output.sum().backward()
    assert output.shape == (0, 16)
    assert all(torch.equal(gradient(factor), torch.zeros_like(factor)) for factor in factors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_projections_stand_for_their_dequantised_values(dtype: torch.dtype) -> None:
    """Gate and up have blocks of their own, also where a block would cross the border between them."""
    case = Case(9, 136, 3, 2, 24, r=4)
    indices, projections, inputs = draw(case)
    gate_up = [[quantize(half.float()) for half in expert.chunk(2)] for expert in projections[0]]
    down = [quantize(expert.float()) for expert in projections[1]]
    codes = [torch.stack([torch.cat([half[0] for half in e]) for e in gate_up]), torch.stack([e[0] for e in down])]
    scales = [torch.stack([torch.stack([half[1] for half in e]) for e in gate_up]), torch.stack([e[1] for e in down])]
    dense = [
        torch.stack([torch.cat([dequantize(*half, dtype) for half in e]) for e in gate_up]),
        torch.stack([dequantize(*e, dtype) for e in down]),
    ]

    def run(projections, scales=(None, None)):
        def function(x, weights, *factors):
            return split(x, indices, weights, projections, factors, scales=scales)

        return outputs_and_gradients(function, inputs, dtype)

    for actual, expected in zip(run(codes, scales), run(dense), strict=True):
        assert torch.equal(actual, expected)


def test_factors_in_fp32_beside_a_bf16_model() -> None:
    """As PEFT keeps adapters: their gradients are in fp32, not rounded to bf16 on the way."""
    indices, projections, inputs = draw(CASES["even sizes"])
    projections = [p.bfloat16() for p in projections]
    x, weights, *factors = (t.to(torch.bfloat16 if i == 0 else torch.float32) for i, t in enumerate(inputs))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [factor.bfloat16().to(dtype).requires_grad_() for factor in factors]
        output = split(x, indices, weights, projections, leaves)
        output.sum().backward()
        assert output.dtype == torch.bfloat16 and all(gradient(leaf).dtype == dtype for leaf in leaves)
        results.append([output.detach(), *(gradient(leaf) for leaf in leaves)])
    assert all(torch.equal(one.bfloat16(), other) for one, other in zip(*results, strict=True))
    assert any(not torch.equal(one.bfloat16().float(), one) for one in results[0][1:])


def test_trained_projections_are_refused() -> None:
    indices, projections, (x, weights, *factors) = draw(CASES["even sizes"])
    projections[0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"freeze them with requires_grad_\(False\)"):
        split(x, indices, weights, projections, factors)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_makes_no_tensor_as_large_as_a_projection(autocast: bool, dropout: float) -> None:
    """Under autocast too, where each expert is cast when it is its turn."""
    case = Case(T=64, H=64, E=64, K=2, I=32, r=1)
    indices, *drawn = draw(case)
    projections, inputs = ([tensor.float() for tensor in group] for group in drawn)
    x, weights, *factors = (tensor.requires_grad_() for tensor in inputs)

    def step() -> None:
        with torch.autocast("cpu", enabled=autocast):
            output = split(x, indices, weights, projections, factors, dropout)
        output.float().sum().backward()

    rows = case.T * case.K * max(case.H, 2 * case.I)
    assert rows <= projections[1].numel() / 16
    assert largest_tensor_made(step, inside=(op._forward, op._backward)) == rows
    assert all(gradient(factor).dtype == torch.float32 for factor in factors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_what_the_experts_without_an_adapter_keep(dtype: torch.dtype) -> None:
    """x (T, H), weights (T, K) and the gate_up output (T*K, 2I); beside them only 2 r numbers a row in fp32."""
    case = Case(64, 64, 8, 4, 32, r=8)
    indices, *drawn = draw(case)
    projections, inputs = ([tensor.to(dtype) for tensor in group] for group in drawn)
    x, weights, *factors = (tensor.requires_grad_() for tensor in inputs)
    kept = tensors_kept(lambda: split(x, indices, weights, projections, factors))
    for parameter in (*projections, *factors):
        assert kept.pop(parameter.data_ptr()).shape == parameter.shape
    nbytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - case.T * case.K * 2 * case.r * 4
    numbers = case.T * case.H + case.T * case.K + case.T * case.K * 2 * case.I
    assert numbers * x.itemsize <= nbytes <= 1.15 * numbers * x.itemsize


def operator_inputs(dtype: torch.dtype, with_grad: bool) -> list[Any]:
    case = CASES["even sizes"]
    indices, *drawn = draw(case)
    projections, inputs = ([tensor.to(dtype) for tensor in group] for group in drawn)
    x, weights, *factors = (tensor.requires_grad_(with_grad) for tensor in inputs)
    keep = [torch.rand(case.T, case.H) >= 0.5, torch.rand(case.T * case.K, case.I) >= 0.5]
    return [x, indices, weights, *projections, None, None, *factors, *SCALINGS, *keep]


@pytest.mark.parametrize("save", [True, False])
def test_forward_operator_is_sound(save: bool) -> None:
    """Schema, fake tensors, autograd registration and compilation, by torch's own checks."""
    torch.library.opcheck(op._forward, (*operator_inputs(torch.float32, save), save))


@pytest.mark.parametrize("needs_factors", [True, False])
def test_backward_operator_is_sound(needs_factors: bool) -> None:
    x, indices, weights, *rest = operator_inputs(torch.float32, with_grad=False)
    projections, (gate_up_scaling, down_scaling, *keep) = rest[:8], rest[8:]
    kept = op._forward(x, indices, weights, *rest, True)[1:]
    arguments = (torch.randn_like(x), x, weights, *projections, *keep, *kept, gate_up_scaling, down_scaling)
    torch.library.opcheck(op._backward, (*arguments, needs_factors))
