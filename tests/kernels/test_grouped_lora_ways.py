"""The ways of the same split low-rank terms: expert by expert, by grouped products, compiled, on a GPU."""

from typing import Any

import pytest
import torch

from seeklet.modeling.kernels.grouped_lora import loop, reference
from tests.kernels.precision import FLOOR, assert_as_precise_as, outputs_and_gradients, relative_error
from tests.kernels.test_grouped_lora import CASES, ODD_CASES, SCALINGS, draw, plain, split

WAYS = {
    "loop": (loop.forward_loop, loop.backward_loop),
    "grouped": (reference.forward_grouped, reference.backward_grouped),
}


def run_way(
    way: str, indices: torch.Tensor, projections: list, inputs: list, keep: Any, needs_factors: bool = True
) -> list[torch.Tensor]:
    """Return output, what is kept, and then the gradients of x, weights and the factors under ones."""
    forward, backward = WAYS[way]
    x, weights, *factors = inputs
    parts = zip(projections, factors[::2], factors[1::2], SCALINGS, keep, strict=True)
    up, down = (reference.Projection(w, None, a, b, scaling, kept) for w, a, b, scaling, kept in parts)
    output, kept = forward(x, indices, weights, up, down, save=True)
    return [output, *kept, *backward(torch.ones_like(x), x, weights, up, down, kept, needs_factors=needs_factors)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropped", [False, True])
def test_grouped_products_equal_the_loop(name: str, dtype: torch.dtype, dropped: bool) -> None:
    """The CUDA path, run here on CPU: forward, what it keeps, and all gradients."""
    case = CASES[name]
    indices, *drawn = draw(case)
    projections, inputs = ([tensor.to(dtype) for tensor in group] for group in drawn)
    masks = [torch.rand(shape) >= 0.3 for shape in ((case.T, case.H), (case.T * case.K, case.I))]
    keep = masks if dropped else (None, None)
    grouped, loop = (run_way(way, indices, projections, inputs, keep) for way in ("grouped", "loop"))
    # One rounding of each product, in bf16 of 2^-8, may fall the other way.
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert torch.equal(grouped[4], loop[4]) and torch.equal(grouped[5], loop[5])
    for position, (actual, expected) in enumerate(zip(grouped, loop, strict=True)):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert relative_error(actual, expected.double()) <= tolerance, position


@pytest.mark.parametrize("way", WAYS)
def test_frozen_factors_get_no_gradient_and_the_input_the_same(way: str) -> None:
    indices, *drawn = draw(CASES["even sizes"])
    projections, inputs = ([tensor.float() for tensor in group] for group in drawn)
    trained, frozen = (run_way(way, indices, projections, inputs, (None, None), needs) for needs in (True, False))
    assert torch.equal(trained[6], frozen[6]) and torch.equal(trained[7], frozen[7])
    assert [grad.numel() for grad in frozen[8:]] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows_at_once", [1, 5])
def test_experts_in_parts_of_few_rows(name: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    indices, projections, inputs = draw(case)
    keep = [torch.rand(shape) >= 0.3 for shape in ((case.T, case.H), (case.T * case.K, case.I))]
    together = run_way("loop", indices, projections, inputs, keep)
    monkeypatch.setattr(loop, "ROWS_AT_ONCE", rows_at_once)
    in_parts = run_way("loop", indices, projections, inputs, keep)
    for one, other in zip(in_parts, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_compiled_equals_eager() -> None:
    indices, projections, inputs = draw(CASES["even sizes"])

    def run(x, weights, *factors):
        return split(x, indices, weights, projections, factors)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    results = [outputs_and_gradients(function, inputs, torch.float64) for function in (run, compiled)]
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) <= FLOOR[torch.float64]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
def test_on_a_gpu_equals_the_sum_built(name: str) -> None:
    indices, projections, inputs = draw((CASES | ODD_CASES)[name])
    projections = [p.bfloat16() for p in projections]

    def on_gpu(x, weights, *factors):
        x, weights, *factors = (tensor.cuda() for tensor in (x, weights, *factors))
        moved = [p.to(x) for p in projections]
        return split(x, indices.cuda(), weights, moved, factors).cpu()

    def theirs(x, weights, *factors):
        return plain(indices, [p.to(x.dtype) for p in projections], x, weights, *factors)

    assert_as_precise_as(on_gpu, theirs, inputs, torch.bfloat16)
