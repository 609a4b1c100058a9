"""Rope's Triton kernels and operators, alone and with the assembly of queries and keys, against the reference."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.rope import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Batch, heads, positions, columns as they are, columns to rotate.
SHAPES = [(1, 1, 1, 1, 2), (2, 3, 5, 24, 8), (2, 17, 3, 5, 16), (1, 33, 2, 128, 64)]


def tables(rows: int, positions: int, rotated: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return cos and sin (rows, S, R), rounded to `dtype`, halves equal."""
    angles = torch.rand(rows, positions, rotated // 2) * 6
    table = torch.cat((angles, angles), dim=-1)
    return [table.cos().to(dtype), table.sin().to(dtype)]


def draw(batch: int, heads: int, positions: int, nope: int, rotated: int) -> list[torch.Tensor]:
    """Return queries, the keys' part per head and the shared part, as they lie in the model: (B, S, H, :) turned."""
    q = torch.randn(batch, positions, heads, nope + rotated, dtype=torch.float64).transpose(1, 2)
    k_nope = torch.randn(batch, positions, heads, nope, dtype=torch.float64).transpose(1, 2)
    return [q, k_nope, torch.randn(batch, positions, 1, rotated, dtype=torch.float64).transpose(1, 2)]


def rotating(cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, ours: bool) -> Callable[..., torch.Tensor]:
    """Return a function of queries and shared key, whose rotated values it gives in one tensor."""

    def rotate(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        turn = [table.to(device=q.device, dtype=q.dtype) for table in (cos, sin)]
        if ours:
            return torch.cat(op.apply_rope(q, k, *turn, interleaved=interleaved), dim=1)
        plain = reference.apply_rope_interleaved if interleaved else reference.apply_rope
        return torch.cat((plain(q, *turn), plain(k, *turn)), dim=1)

    return rotate


def assembling(cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, ours: bool) -> Callable[..., torch.Tensor]:
    def assemble(q: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        turn = [table.to(device=q.device, dtype=q.dtype) for table in (cos, sin)]
        return torch.stack(
            (op if ours else reference).assemble_query_key(q, k_nope, k_rope, *turn, interleaved=interleaved)
        )

    return assemble


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rotating(shape: tuple[int, ...], dtype: torch.dtype, interleaved: bool, device: str) -> None:
    batch, _, positions, nope, rotated = shape
    q, _, k_rope = draw(*shape)
    turn = tables(batch, positions, rotated, dtype)
    ours, theirs = (rotating(*turn, interleaved=interleaved, ours=which) for which in (True, False))
    assert_kernel_as_precise_as(ours, theirs, [q[..., nope:], k_rope], dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_assembling(shape: tuple[int, ...], dtype: torch.dtype, interleaved: bool, device: str) -> None:
    turn = tables(1, shape[2], shape[4], dtype)
    ours, theirs = (assembling(*turn, interleaved=interleaved, ours=which) for which in (True, False))
    assert_kernel_as_precise_as(ours, theirs, draw(*shape), dtype, device)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 20, 4, 40)), st.sampled_from([2, 4, 8, 32])),
    shared_tables=st.booleans(),
    interleaved=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(shape: tuple[int, ...], shared_tables: bool, interleaved: bool, seed: int) -> None:
    torch.manual_seed(seed)
    turn = tables(1 if shared_tables else shape[0], shape[2], shape[4], torch.bfloat16)
    ours, theirs = (assembling(*turn, interleaved=interleaved, ours=which) for which in (True, False))
    assert_kernel_as_precise_as(ours, theirs, draw(*shape), torch.bfloat16, "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_and_strided_gradients(device: str) -> None:
    inputs = [tensor.float().to(device).requires_grad_() for tensor in draw(2, 3, 4, 6, 8)]
    turn = [table.to(device) for table in tables(2, 4, 8)]
    expected = reference.assemble_query_key(*inputs, *turn, interleaved=True)
    with kernels_on(device):
        actual = op.assemble_query_key(*inputs, *turn, interleaved=True)
        torch.testing.assert_close(actual, expected)
        for cotangent in (
            torch.ones((), device=device).expand(2, 3, 4, 14),
            torch.randn(4, 14, 2, 3).permute(2, 3, 0, 1),
        ):
            cotangents = [cotangent.to(device)] * 2
            gradients = torch.autograd.grad(actual, inputs, cotangents, retain_graph=True)
            torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, cotangents, retain_graph=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("joined", [False, True])
def test_registered_as_torch_asks(joined: bool, device: str) -> None:
    q, k_nope, k_rope = (tensor.float().to(device).requires_grad_() for tensor in draw(2, 3, 4, 6, 8))
    turn = [table.to(device) for table in tables(1, 4, 8)]
    given = (q, k_nope, k_rope) if joined else (q[..., 6:].detach().requires_grad_(), None, k_rope)
    with kernels_on(device):
        torch.library.opcheck(op._forward, (*given, *turn, True))


def test_the_reference_behind_the_operator_is_registered_too() -> None:
    q, k_nope, k_rope = (tensor.float().requires_grad_() for tensor in draw(2, 3, 4, 6, 8))
    torch.library.opcheck(op._forward, (q, k_nope, k_rope, *tables(1, 4, 8), True))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device: str) -> None:
    q, k_nope, k_rope = (tensor.float().to(device).requires_grad_() for tensor in draw(2, 3, 4, 6, 8))
    turn = [table.to(device) for table in tables(1, 4, 8)]

    def product(assemble: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        query, key = assemble(q, k_nope, k_rope, *turn, interleaved=True)
        return (query * key).sum()

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        gradients = torch.autograd.grad(compiled(op.assemble_query_key), (q, k_nope, k_rope))
    expected = torch.autograd.grad(product(reference.assemble_query_key), (q, k_nope, k_rope))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str) -> None:
    inputs = [tensor.bfloat16().to(device).requires_grad_() for tensor in draw(1, 40, 3, 4, 8)]
    turn = [table.to(device) for table in tables(1, 3, 8, torch.bfloat16)]
    with kernels_on(device):
        outputs = op.assemble_query_key(*inputs, *turn, interleaved=True)
        runs = [torch.autograd.grad(outputs, inputs[2], outputs, retain_graph=True)[0] for _ in range(3)]
    assert all(torch.equal(runs[0], run) for run in runs[1:])


def test_on_cpu_the_operator_is_its_reference() -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(2, 3, 4, 5, 6)]
    turn = [table.double() for table in tables(2, 4, 6)]
    for interleaved in (True, False):
        outputs, expected = (
            module.assemble_query_key(*inputs, *turn, interleaved=interleaved) for module in (op, reference)
        )
        torch.testing.assert_close(outputs, expected)
        gradients, theirs = (torch.autograd.grad(given, inputs, expected) for given in (outputs, expected))
        torch.testing.assert_close(gradients, theirs)


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "forward", lambda q, nope, k, *_: (q.clone(), k.clone()))
    q, k = torch.randn(2, 1, 3, 4, 8)[0], torch.randn(1, 1, 4, 8)
    q = q.reshape(1, 3, 4, 8)
    turn = tables(1, 4, 8)
    with kernels_on("cpu"):
        assert torch.equal(op.apply_rope(q, k, *turn, interleaved=True)[0], q)
    assert torch.equal(op.apply_rope(q, k, *turn, interleaved=True)[0], reference.apply_rope_interleaved(q, *turn))


def test_odd_sizes_take_the_reference() -> None:
    assert not kernel.takes(torch.empty(1), 6)
    assert not kernel.takes(torch.empty(1, dtype=torch.float64), 8)
