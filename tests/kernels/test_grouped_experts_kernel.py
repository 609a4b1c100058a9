"""The routed experts' Triton kernels against the reference: forward, every gradient, sorting, odd sizes, both chips."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.grouped_experts import kernel, op, products, reference, sort, tiling
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.precision import gradient, relative_error
from tests.kernels.test_grouped_experts import CASES, ODD_CASES, Case, draw, plain

DTYPES = [torch.float32, torch.bfloat16]
# Several tiles of rows, of columns, and of what is summed over, at sizes that are quick to interpret.
MANY_TILES = Case(24, 72, 3, 2, 40)


@pytest.fixture(params=["tma", "pointers"])
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interpret the kernels as for a chip with tensor descriptors, and as for one without."""
    if request.param == "pointers":
        monkeypatch.setattr(products, "chip", lambda tensor: 80)
    yield


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "block_rows", lambda *_: 16)
    monkeypatch.setattr(tiling, "of_rows", lambda *_: tiling.Tiling(16, 32, 32, 4, 2, group=2))
    monkeypatch.setattr(tiling, "over_rows", lambda *_: tiling.Tiling(32, 16, 16, 4, 2))


def compare(case: Case, dtype: torch.dtype, device: str) -> None:
    indices, inputs = draw(case)

    def ours(x, *rest):
        return grouped_experts(x, indices.to(x.device), *rest)

    assert_kernel_as_precise_as(ours, lambda x, *rest: plain(indices, x, *rest), inputs, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [*CASES, *ODD_CASES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_errs_no_more_than_the_plain_sum(name: str, dtype: torch.dtype, device: str) -> None:
    compare((CASES | ODD_CASES)[name], dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_all_sizes_one(device: str) -> None:
    """In fp32: of a single number in bf16 the tolerance knows one rounding, and the kernels round more than once."""
    compare(Case(1, 1, 1, 1, 1), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles(chip: None, small_tiles: None, dtype: torch.dtype, device: str) -> None:
    compare(MANY_TILES, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_programs_that_take_tile_after_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs, of which there are four where kernels are interpreted: the same bits."""
    indices, inputs = draw(MANY_TILES)
    leaves = [tensor.float().to(device).requires_grad_() for tensor in inputs]
    monkeypatch.setattr(kernel, "block_rows", lambda *_: 16)
    results = []
    for persistent in (False, True):
        chosen = tiling.Tiling(16, 32, 32, 4, 2, group=2, persistent=persistent)
        monkeypatch.setattr(tiling, "of_rows", lambda *_, chosen=chosen: chosen)
        with kernels_on(device):
            output = grouped_experts(leaves[0], indices.to(device), *leaves[1:])
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_of_64_and_of_128_rows_and_all_columns(device: str) -> None:
    """As they are on a GPU, SwiGLU's gradient in its parts among them."""
    compare(Case(70, 64, 2, 2, 48), torch.bfloat16, device)
    compare(Case(150, 64, 2, 1, 48), torch.bfloat16, device)


# The gradient to the weights of a few tokens is a few numbers, of which the tolerance knows one rounding.
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.integers(8, 20), st.integers(8, 40), st.integers(1, 6), st.integers(1, 6), st.integers(8, 20), st.integers(0, 9)
)
def test_any_sizes(tokens: int, hidden: int, experts: int, top_k: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    compare(Case(tokens, hidden, experts, min(top_k, experts), width), torch.bfloat16, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 2), (150, 3), (3000, 3)])
def test_sorted_as_the_reference_does(shape: tuple[int, int], device: str) -> None:
    """Stable, also over several chunks, and where some experts get nothing; every tile is found once."""
    num_experts, block = 37, 16
    indices = torch.randint(3, num_experts - 2, shape, device=device)
    with kernels_on(device):
        rows, counts, tiles = sort.sort_rows(indices, num_experts, block)
    expected = reference.sort_rows(indices, num_experts)
    assert torch.equal(rows, expected[0]) and torch.equal(counts, expected[1])
    assert torch.equal(tiles.ends.long(), counts.cumsum(0))
    found, start = [], 0
    for expert, count in enumerate(counts.tolist()):
        found += [(expert, start + row) for row in range(0, count, block)]
        start += count
    assert list(zip(*tiles.tiles[:, : int(tiles.used)].tolist(), strict=True)) == found


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_and_an_expanded_gradient(chip: None, device: str) -> None:
    indices, inputs = draw(CASES["even sizes"])
    leaves = [tensor.float().mT.contiguous().mT.to(device).requires_grad_() for tensor in inputs]
    assert not any(leaf.is_contiguous() for leaf in leaves)
    with kernels_on(device):
        output = grouped_experts(leaves[0], indices.to(device), *leaves[1:])
        actual = torch.autograd.grad(output.sum(), leaves)
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(plain(indices, *exact).sum(), exact)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one.cpu(), other) <= 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    shapes = ((0, 16), (0, 2), (6, 16, 16), (6, 16, 8))
    x, weights, gate_up_proj, down_proj = (torch.randn(s, device=device, requires_grad=True) for s in shapes)
    with kernels_on(device):
        indices = torch.empty(0, 2, dtype=torch.int64, device=device)
        output = grouped_experts(x, indices, weights, gate_up_proj, down_proj)
        output.sum().backward()
    assert output.shape == (0, 16)
    assert not gradient(gate_up_proj).any() and not gradient(down_proj).any()


@pytest.mark.parametrize("device", DEVICES)
def test_frozen_experts_and_no_gradients_at_all(device: str) -> None:
    indices, inputs = draw(CASES["even sizes"])
    indices, (x, weights, *projections) = indices.to(device), [tensor.float().to(device) for tensor in inputs]
    with kernels_on(device) as launched:
        plainly = grouped_experts(x, indices, weights, *projections)
        assert launched is None or launched["grouped_experts.gate_up_kernel"] == 1
        x.requires_grad_()
        output = grouped_experts(x, indices, weights, *projections)
        output.sum().backward()
        assert launched is None or launched["grouped_experts.over_rows_kernel"] == 0
    assert torch.equal(plainly, output)
    assert gradient(x).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str) -> None:
    indices, inputs = draw(CASES["many rows an expert"])
    leaves = [tensor.float().to(device).requires_grad_() for tensor in inputs]
    with kernels_on(device):
        runs = []
        for _ in range(2):
            output = grouped_experts(leaves[0], indices.to(device), *leaves[1:])
            runs.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("save", [True, False])
def test_registered_as_torch_asks(save: bool, device: str) -> None:
    indices, inputs = draw(Case(3, 16, 4, 2, 8))
    x, *rest = (tensor.float().to(device).requires_grad_(save) for tensor in inputs)
    with kernels_on(device):
        torch.library.opcheck(op._forward, (x, indices.to(device), *rest, save))


def test_float64_and_mixed_dtypes_take_the_reference() -> None:
    x, projection = torch.randn(2, 8), torch.randn(2, 8, 8)
    assert kernel.takes(x, projection, projection)
    assert not kernel.takes(x.double(), projection.double(), projection.double())
    assert not kernel.takes(x, projection.bfloat16(), projection)


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(x: torch.Tensor, indices: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
        return x.clone(), x.new_empty(0, 16), indices.new_empty(indices.numel()), indices.new_empty(6)

    monkeypatch.setattr(kernel, "forward", forward)
    indices, inputs = draw(CASES["even sizes"])
    x, *rest = (tensor.float() for tensor in inputs)
    with kernels_on("cpu"):
        assert torch.equal(grouped_experts(x, indices, *rest), x)
