"""Absorbed MLA decoding in Triton against the reference: masks, ragged lengths, splits, and whose kernel is taken."""

# B batch, S query tokens, H heads, T cached tokens, L latent, R rope

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.mla_decode import flash_mla, kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on

SCALING = 0.3
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(B: int = 2, H: int = 3, S: int = 2, T: int = 9, L: int = 20, R: int = 6) -> list[torch.Tensor]:
    shapes = ((B, H, S, L), (B, H, S, R), (B, T, L), (B, T, R))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def ours(inputs, mask, lengths=None) -> torch.Tensor:
    q_latent, q_rope, latent, rope = inputs
    return op.mla_decode(q_latent, q_rope, latent, rope, mask, SCALING, lengths)


def theirs(inputs, mask, lengths=None) -> torch.Tensor:
    q_latent, q_rope, latent, rope = inputs
    return reference.mla_decode(q_latent, q_rope, latent, rope, mask, SCALING, lengths)[0]


def make_mask(kind: str, B: int, H: int, S: int, T: int) -> torch.Tensor | None:
    """Return a mask in which every query sees a key."""
    causal = torch.arange(T)[None, :] <= torch.arange(T - S, T)[:, None]
    if kind == "causal":
        return causal
    if kind == "left padding":
        return causal & (torch.arange(T) >= torch.arange(B)[:, None, None, None])
    if kind == "static cache":
        return (causal.roll(-T // 2, -1) & (torch.arange(T) < T // 2)).expand(B, 1, S, T)
    if kind == "additive":
        return torch.randn(B, H, S, T).masked_fill(~causal, torch.finfo(torch.bfloat16).min).bfloat16()
    if kind == "additive, minus infinity":
        return torch.where(causal, 0.0, -torch.inf)[None, None]
    return None


MASKS = ["none", "causal", "left padding", "static cache", "additive", "additive, minus infinity"]


def assert_precise(inputs: list[torch.Tensor], mask, lengths, dtype: torch.dtype, device: str) -> None:
    """Hold the operator against the reference; a mask in half precision only where all is."""

    there = [None if x is None else x.to(device) for x in (mask, lengths)]
    assert_kernel_as_precise_as(
        lambda *leaves: ours(leaves, *there), lambda *leaves: theirs(leaves, mask, lengths), inputs, dtype, device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_errs_no_more_than_the_reference(mask: str, dtype: torch.dtype, device: str) -> None:
    assert_precise(draw(T=70), make_mask(mask, 2, 3, 2, 70), None, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_lengths_one_key_and_eight_queries(dtype: torch.dtype, device: str) -> None:
    assert_precise(draw(B=3, S=1, T=40), None, torch.tensor([1, 40, 17]), dtype, device)
    assert_precise(draw(B=2, S=8, T=130), None, torch.tensor([130, 8]), dtype, device)
    assert_precise(draw(S=1, T=1), None, None, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_published_widths_and_more_rows_than_a_tile(device: str) -> None:
    assert_precise(draw(B=1, H=40, S=1, T=70, L=512, R=64), None, torch.tensor([65]), torch.bfloat16, device)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (3, 20, 4, 90, 40, 20))),
    splits=st.integers(1, 5),
    mask=st.sampled_from(MASKS),
    data=st.data(),
)
def test_any_shape_in_any_number_of_splits(sizes, splits: int, mask: str, data: st.DataObject) -> None:
    B, H, S, T, L, R = sizes
    T = T + 2 * S
    torch.manual_seed(sum(sizes))
    given_mask = make_mask(mask, B, H, S, T)
    lengths = None
    if mask in ("none", "causal"):
        lengths = torch.tensor(data.draw(st.lists(st.integers(S, T), min_size=B, max_size=B)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "num_splits", lambda *_: splits)
        assert_precise(draw(B, H, S, T, L, R), given_mask, lengths, torch.bfloat16, "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_behind_a_rows_length_is_never_read(device: str) -> None:
    """As in a cache that is longer than what it holds."""
    inputs = [x.float().to(device) for x in draw(T=40)]
    lengths = torch.tensor([3, 21], device=device)
    expected = theirs(inputs, None, lengths)
    for cache in inputs[2:]:
        for row, length in enumerate(lengths.tolist()):
            cache[row, length:] = torch.nan
    with kernels_on(device):
        torch.testing.assert_close(ours(inputs, None, lengths), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_what_no_query_sees_is_not_read(device: str) -> None:
    """Whole blocks before and behind all that a mask leaves."""
    inputs = [x.float().to(device) for x in draw(S=1, T=200)]
    mask = torch.zeros(2, 1, 1, 200, dtype=torch.bool, device=device)
    mask[:, :, :, 70:90] = True
    expected = theirs(inputs, mask)
    for cache in inputs[2:]:
        cache[:, :64], cache[:, 128:] = torch.nan, torch.nan
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    with kernels_on(device):
        for each in (mask, additive):
            torch.testing.assert_close(ours(inputs, each), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_as_the_model_has_them(device: str) -> None:
    """Queries out of a product by heads, latent and rope as slices of one cache."""
    cache = torch.randn(2, 12, 26, device=device)
    q_latent = torch.randn(3, 2, 2, 20, device=device).transpose(0, 1)
    q_rope = torch.randn(2, 2, 3, 10, device=device).transpose(1, 2)[..., 4:]
    inputs = (q_latent, q_rope, cache[..., :20], cache[..., 20:])
    turned = (q_latent.mT.contiguous().mT, *inputs[1:])
    expected = theirs(inputs, None)
    with kernels_on(device):
        torch.testing.assert_close(ours(inputs, None), expected)
        torch.testing.assert_close(ours(turned, None), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_that_sees_nothing_gets_finite_numbers(device: str) -> None:
    inputs = [x.float().to(device) for x in draw()]
    seen = torch.zeros(2, 1, 2, 9, dtype=torch.bool, device=device)
    seen[1, :, 1] = True
    lowest = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    expected = theirs(inputs, seen)
    with kernels_on(device):
        for mask in (seen, lowest, torch.where(seen, 0.0, -torch.inf)):
            output = ours(inputs, mask)
            assert output.isfinite().all()
            torch.testing.assert_close(output[1, :, 1], expected[1, :, 1])


@pytest.mark.parametrize("device", DEVICES)
def test_large_scores_do_not_overflow(device: str) -> None:
    inputs = [40 * x.float().to(device) for x in draw(T=70)]
    expected = theirs(inputs, None)
    with kernels_on(device):
        torch.testing.assert_close(ours(inputs, None), expected, rtol=1e-4, atol=1e-3)


def test_splits_fill_the_gpu_from_shapes_alone() -> None:
    """V3's 128 heads in 4 programs on 132 multiprocessors; a long batch needs no split; nor has a block two halves."""
    assert kernel.num_splits(4, 1000, 132) == 64
    assert kernel.num_splits(8, 1000, 132) == 33
    assert kernel.num_splits(400, 1000, 132) == 1
    assert kernel.num_splits(4, 3, 132) == 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ragged", [False, True])
def test_registered_as_torch_asks(ragged: bool, device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw()]
    mask = None if ragged else make_mask("causal", 2, 3, 2, 9)
    lengths = torch.tensor([9, 4]) if ragged else None
    there = [None if x is None else x.to(device) for x in (mask, lengths)]
    with kernels_on(device):
        torch.library.opcheck(op._forward, (*inputs, there[0], SCALING, there[1]))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device: str) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in draw()]
    compiled = torch.compile(lambda *x: ours(x, None).square(), backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        gradients = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    expected = torch.autograd.grad(theirs(inputs, None).square().sum(), inputs)
    torch.testing.assert_close(gradients, expected)


def test_the_kernel_is_what_runs_and_float64_takes_the_reference() -> None:
    inputs = draw(T=70)
    from tests.kernels.interpreter import interpreted

    with interpreted() as launched:
        ours([x.float() for x in inputs], None)
        assert launched == {"mla_decode.split_kernel": 1, "mla_decode.combine_kernel": 1}
        ours(inputs, make_mask("causal", 2, 3, 2, 70))
        assert launched.total() == 2
        wide = draw(L=513)
        assert torch.equal(ours(wide, None), theirs(wide, None))
        assert launched.total() == 2


def test_what_does_not_fit_together_is_told() -> None:
    inputs = draw()
    with pytest.raises(ValueError, match=r"\(2, 9, 19\).*allowed: \(B, H, S, L\)"):
        ours([*inputs[:2], inputs[2][..., :19], inputs[3]], None)
    with pytest.raises(RuntimeError, match="mla_decode has no second derivative"):
        leaf = inputs[0].requires_grad_()
        torch.autograd.grad(ours([leaf, *inputs[1:]], None).sum(), leaf, create_graph=True)


def stand_in(calls: list[tuple[int, ...]]) -> SimpleNamespace:
    """Return a module with FlashMLA's two functions, which computes on pages what it is asked."""

    def flash_mla_with_kvcache(q, k_cache, block_table, cache_seqlens, head_dim_v, metadata, splits, **options):
        calls.append(tuple(k_cache.shape))
        B = q.shape[0]
        cache = k_cache[block_table.long()].reshape(B, -1, k_cache.shape[-1])
        latent, rope = cache[..., :head_dim_v], cache[..., head_dim_v:]
        q_latent, q_rope = q.transpose(1, 2).split([head_dim_v, rope.shape[-1]], dim=-1)
        mask = torch.arange(cache.shape[1]) < cache_seqlens[:, None, None, None]
        lengths = cache_seqlens if options["causal"] else None
        assert options["softmax_scale"] == SCALING
        return theirs((q_latent, q_rope, latent, rope), mask, lengths).transpose(1, 2), None

    return SimpleNamespace(get_mla_metadata=lambda *_: (None, None), flash_mla_with_kvcache=flash_mla_with_kvcache)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("T", [70, 128])
def test_64_heads_go_to_flash_mla_where_it_is(monkeypatch: pytest.MonkeyPatch, ragged: bool, T: int) -> None:
    calls: list[tuple[int, ...]] = []
    monkeypatch.setitem(sys.modules, "flash_mla", stand_in(calls))
    inputs = [x.bfloat16() for x in draw(H=64, S=2, T=T, L=512, R=64)]
    cache = torch.cat(inputs[2:], dim=-1)
    inputs[2:] = [cache[..., :512], cache[..., 512:]]
    lengths = torch.tensor([T, 5]) if ragged else None
    expected = theirs(inputs, None, lengths)
    with kernels_on("cpu"):
        actual = ours(inputs, None, lengths)
    assert calls == [(4, 64, 1, 576)]
    # Both round on the way, and err by 0.9 % from the exact result.
    assert (actual - expected).float().norm() < 0.02 * expected.float().norm()
    # 128 keys are whole pages, and are handed over where they lie.
    assert (flash_mla._pages(inputs[2], inputs[3]).data_ptr() == cache.data_ptr()) == (T == 128)


def test_what_is_not_for_flash_mla(monkeypatch: pytest.MonkeyPatch) -> None:
    q_latent, q_rope, latent, _ = (x.bfloat16() for x in draw(H=64, L=512, R=64))
    assert not flash_mla.flash_mla_available()
    assert not flash_mla.flash_mla_takes(q_latent, q_rope, latent, None)
    monkeypatch.setitem(sys.modules, "flash_mla", stand_in([]))
    assert flash_mla.flash_mla_takes(q_latent, q_rope, latent, None)
    assert not flash_mla.flash_mla_takes(q_latent[:, :63], q_rope[:, :63], latent, None)
    assert not flash_mla.flash_mla_takes(q_latent, q_rope, latent, torch.ones(2, 9, dtype=torch.bool))
    assert not flash_mla.flash_mla_takes(q_latent.float(), q_rope.float(), latent.float(), None)
    assert not flash_mla.flash_mla_takes(q_latent[..., :256], q_rope, latent[..., :256], None)
    monkeypatch.setattr(flash_mla, "capability", lambda _: 80)
    assert not flash_mla.flash_mla_takes(q_latent, q_rope, latent, None)
