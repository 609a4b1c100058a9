"""The kernels of experts with low-rank terms against W + s B A built in full: forward, every gradient, fp8, dropout."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.block_fp8.reference import dequantize, quantize
from seeklet.modeling.kernels.grouped_experts import kernel as experts
from seeklet.modeling.kernels.grouped_experts import products, tiling
from seeklet.modeling.kernels.grouped_lora import kernel, op
from seeklet.modeling.kernels.grouped_lora.reference import Projection
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.precision import gradient, outputs_and_gradients, relative_error
from tests.kernels.test_grouped_lora import CASES, ODD_CASES, Case, draw, operator_inputs, plain, split

DTYPES = [torch.float32, torch.bfloat16]
CHIPS = [80, 90]


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "block_rows", lambda *_: 16)
    monkeypatch.setattr(tiling, "of_rows", lambda *_: tiling.Tiling(16, 32, 32, 4, 2, group=2, persistent=True))
    monkeypatch.setattr(tiling, "over_rows", lambda *_: tiling.Tiling(32, 16, 16, 4, 2))


def compare(case: Case, dtype: torch.dtype, device: str) -> None:
    indices, projections, inputs = draw(case)
    projections = [p.to(dtype).double() for p in projections]

    def ours(x, weights, *factors):
        dense = [p.to(x.device, x.dtype) for p in projections]
        return split(x, indices.to(x.device), weights, dense, factors)

    def theirs(x, weights, *factors):
        return plain(indices, [p.to(x.dtype) for p in projections], x, weights, *factors)

    assert_kernel_as_precise_as(ours, theirs, inputs, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_errs_no_more_than_with_the_sum_built(name: str, dtype: torch.dtype, device: str) -> None:
    compare((CASES | ODD_CASES)[name], dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_all_sizes_one(device: str) -> None:
    """In fp32: of a single number in bf16 the tolerance knows one rounding, and the kernels round more than once."""
    compare(Case(1, 1, 1, 1, 1, r=1), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capability", CHIPS)
def test_many_tiles(capability: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    monkeypatch.setattr(products, "chip", lambda tensor: capability)
    for dtype in DTYPES:
        compare(Case(20, 72, 3, 2, 40, r=17), dtype, device)


# Of a single number the tolerance knows one rounding, and the kernels round more than once.
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(8, 40), st.integers(1, 5), st.integers(8, 20), st.integers(1, 20))
def test_any_sizes(tokens: int, hidden: int, experts: int, width: int, rank: int) -> None:
    torch.manual_seed(tokens)
    compare(Case(tokens, hidden, experts, min(2, experts), width, r=rank), torch.bfloat16, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_projections_stand_for_their_dequantised_values(
    dtype: torch.dtype, capability: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whether the chip casts from fp8 or not; gate and up have blocks of their own."""
    monkeypatch.setattr(products, "chip", lambda tensor: capability)
    # The same tiles for both, as for fp8.
    monkeypatch.setattr(experts, "block_rows", lambda *_: 16)
    monkeypatch.setattr(tiling, "of_rows", lambda *_: tiling.Tiling(16, 64, 64, 4, 2))
    # Tiles that begin in the last block of gate's scales and end in the first one of up's.
    indices, projections, inputs = draw(Case(5, 144, 2, 2, 136, r=4))
    gate_up = [[quantize(half.float()) for half in expert.chunk(2)] for expert in projections[0]]
    down = [quantize(expert.float()) for expert in projections[1]]
    codes = [torch.stack([torch.cat([half[0] for half in e]) for e in gate_up]), torch.stack([e[0] for e in down])]
    scales = [torch.stack([torch.stack([half[1] for half in e]) for e in gate_up]), torch.stack([e[1] for e in down])]
    dense = [
        torch.stack([torch.cat([dequantize(*half, dtype) for half in e]) for e in gate_up]),
        torch.stack([dequantize(*e, dtype) for e in down]),
    ]

    def run(projections, scales=(None, None)):
        moved, scales = ([t if t is None else t.to(device) for t in group] for group in (projections, scales))

        def function(x, weights, *factors):
            return split(x, indices.to(device), weights, moved, factors, scales=scales)

        with kernels_on(device):
            return outputs_and_gradients(function, [tensor.to(device) for tensor in inputs], dtype)

    for actual, expected in zip(run(codes, scales), run(dense), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["even sizes", "empty experts, first and last too"])
def test_dropout_falls_on_the_input_of_a_only(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    case, dropout = CASES[name], 0.4
    indices, projections, inputs = draw(case)
    keep = [torch.rand(shape) >= dropout for shape in ((case.T, case.H), (case.T * case.K, case.I))]
    drawn = iter(keep)
    monkeypatch.setattr(op, "_draw_kept", lambda like, *_: next(drawn).to(like.device))

    def ours(x, weights, *factors):
        dense = [p.to(x.device, x.dtype) for p in projections]
        return split(x, indices.to(x.device), weights, dense, factors, dropout)

    def theirs(x, weights, *factors):
        dense = [p.to(x.dtype) for p in projections]
        return plain(indices, dense, x, weights, *factors, keep=keep, dropout=dropout)

    assert_kernel_as_precise_as(ours, theirs, inputs, torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
def test_factors_in_fp32_beside_a_bf16_model(device: str) -> None:
    """Their gradients are in fp32, not rounded to bf16 on the way."""
    indices, projections, inputs = draw(CASES["even sizes"])
    projections = [p.bfloat16().to(device) for p in projections]
    x, weights, *factors = (t.to(device, torch.bfloat16 if i == 0 else torch.float32) for i, t in enumerate(inputs))
    leaves = [factor.requires_grad_() for factor in factors]
    with kernels_on(device):
        output = split(x, indices.to(device), weights, projections, leaves)
        output.sum().backward()
    assert output.dtype == torch.bfloat16
    for leaf in leaves:
        assert gradient(leaf).dtype == torch.float32
        assert not torch.equal(gradient(leaf).bfloat16().float(), gradient(leaf))


@pytest.mark.parametrize("device", DEVICES)
def test_without_gradients_and_with_frozen_factors(device: str) -> None:
    indices, projections, inputs = draw(CASES["even sizes"])
    projections = [p.float().to(device) for p in projections]
    x, weights, *factors = (tensor.float().to(device) for tensor in inputs)
    with kernels_on(device) as launched:
        plainly = split(x, indices.to(device), weights, projections, factors)
        x.requires_grad_()
        output = split(x, indices.to(device), weights, projections, factors)
        output.sum().backward()
        assert launched is None or launched["grouped_experts.over_rows_kernel"] == 0
        assert launched is None or launched["grouped_experts.activation_kernel"] == 1
    assert torch.equal(plainly, output) and gradient(x).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    _, projections, inputs = draw(CASES["even sizes"])
    tensors = (*(t[:0] for t in inputs[:2]), *inputs[2:])
    x, weights, *factors = (tensor.float().to(device).requires_grad_() for tensor in tensors)
    indices = torch.empty(0, 2, dtype=torch.int64, device=device)
    with kernels_on(device):
        output = split(x, indices, weights, [p.float().to(device) for p in projections], factors, 0.5)
        output.sum().backward()
    assert output.shape == (0, 16)
    assert all(not gradient(factor).any() for factor in factors)


@pytest.mark.parametrize("device", DEVICES)
def test_registered_as_torch_asks(device: str) -> None:
    arguments: list[Any] = operator_inputs(torch.float32, True)
    moved = [a.detach().to(device).requires_grad_(a.requires_grad) if torch.is_tensor(a) else a for a in arguments]
    with kernels_on(device):
        torch.library.opcheck(op._forward, (*moved, True))


def test_what_is_left_to_the_reference() -> None:
    def projection(rank: int, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Projection:
        weight, a, b = torch.randn(2, 8, 8).to(dtype), torch.randn(2 * rank, 8), torch.randn(8, 2 * rank)
        return Projection(weight, scale, a, b, 1.0, None)

    x, usual = torch.randn(2, 8), projection(4, torch.float32)
    assert kernel.takes(x, usual, usual)
    assert kernel.takes(x, usual, projection(4, torch.float8_e4m3fn, torch.ones(2, 1, 1)))
    assert not kernel.takes(x.double(), usual, usual)
    assert not kernel.takes(x, usual, projection(kernel.LARGEST_RANK + 1, torch.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str) -> None:
    indices, projections, inputs = draw(CASES["many rows an expert"])
    projections = [p.float().to(device) for p in projections]
    leaves = [tensor.float().to(device).requires_grad_() for tensor in inputs]
    runs = []
    with kernels_on(device):
        for _ in range(2):
            output = split(leaves[0], indices.to(device), leaves[1], projections, leaves[2:])
            runs.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other) and relative_error(one, other.double()) == 0
