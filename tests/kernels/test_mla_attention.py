"""Blocked attention with keys wider than values against plain softmax attention, forward and every gradient."""

# B batch, S queries, T keys, H heads, D query and key size, V value size

import pytest
import torch

from seeklet.modeling.kernels.mla_attention import reference
from seeklet.modeling.kernels.mla_attention.reference import mla_attention
from tests.kernels.memory import largest_tensor_made, tensors_kept
from tests.kernels.precision import assert_as_precise_as

B, H, D, V = 2, 3, 5, 4
SCALING = D**-0.5
SIZES = [(1, 1), (7, 7), (4, 9), (1, 6)]


@pytest.fixture(params=[(128, 2**20), (3, 1), (2, 40)], ids=["one block", "3 rows of a head", "2 rows of some heads"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what the tests below draw into blocks, the last ones shorter."""
    monkeypatch.setattr(reference, "BLOCK_ROWS", request.param[0])
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", request.param[1])


def draw(S: int, T: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float64 query (B, H, S, D), key (B, H, T, D) and value (B, H, T, V), all leaves."""
    shapes = ((B, H, S, D), (B, H, T, D), (B, H, T, V))
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, value


def causal(S: int, T: int) -> torch.Tensor:
    return torch.arange(T)[None, :] <= torch.arange(T - S, T)[:, None]


def make_mask(kind: str, S: int, T: int) -> torch.Tensor | None:
    """Return a mask in which every query sees a key."""
    if kind == "none":
        return None
    if kind == "bool, a row each":
        return (causal(S, T) & (torch.arange(T) >= torch.tensor([0, T - S])[:, None, None])).unsqueeze(1)
    if kind == "bool, for all":
        return causal(S, T)[None, None]
    if kind == "additive, a head each":
        return torch.randn(B, H, S, T).masked_fill(~causal(S, T), torch.finfo(torch.float32).min)
    return torch.where(causal(S, T), 0.0, -torch.inf)[None, None]


MASKS = ["none", "bool, a row each", "bool, for all", "additive, a head each", "additive, minus infinity"]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = query @ key.mT * SCALING
    mask = causal(query.shape[2], key.shape[2]) if mask is None else mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(value.dtype) @ value


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("S", "T"), SIZES)
def test_equals_plain_attention(blocks: None, S: int, T: int, mask: str) -> None:
    inputs, made = draw(S, T), make_mask(mask, S, T)
    actual, expected = mla_attention(*inputs, made, SCALING), plain(*inputs, made)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(actual, inputs, cotangent)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, cotangent), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_finite_differences(blocks: None, mask: str) -> None:
    made = make_mask(mask, 4, 6)
    torch.autograd.gradcheck(lambda q, k, v: mla_attention(q, k, v, made, SCALING), draw(4, 6), fast_mode=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errs_no_more_than_plain_attention(blocks: None, mask: str, dtype: torch.dtype) -> None:
    made = make_mask(mask, 7, 9)
    if made is not None and made.dtype != torch.bool:
        # Additive masks come in the dtype of the model, its lowest number instead of that of fp32.
        made = made.clamp(min=torch.finfo(dtype).min).to(dtype)
    assert_as_precise_as(
        lambda q, k, v: mla_attention(q, k, v, made, SCALING), lambda q, k, v: plain(q, k, v, made), draw(7, 9), dtype
    )


def test_a_query_that_sees_nothing_gets_zeros_as_from_pytorch(blocks: None) -> None:
    """And adds nothing to any gradient."""
    query, key, value = draw(4, 6)
    seen = causal(4, 6)[None, None].repeat(B, 1, 1, 1)
    seen[1, :, :2] = False
    output = mla_attention(query, key, value, seen, SCALING)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=SCALING)
    assert not expected[1, :, :2].any()
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad(output, (query, key, value), weights)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (query, key, value), weights))


def test_a_query_whose_additive_mask_is_lowest_everywhere_stays_finite(blocks: None) -> None:
    query, key, value = (leaf.detach().float().requires_grad_() for leaf in draw(4, 6))
    mask = torch.zeros(1, 1, 4, 6)
    mask[:, :, 1] = torch.finfo(torch.float32).min
    output = mla_attention(query, key, value, mask, SCALING)
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (query, key, value))


def test_large_scores_do_not_overflow(blocks: None) -> None:
    inputs = [(100 * leaf).detach().float() for leaf in draw(7, 7)]
    output = mla_attention(inputs[0], inputs[1], inputs[2], None, SCALING)
    torch.testing.assert_close(output, plain(inputs[0], inputs[1], inputs[2], None))


def test_non_contiguous_inputs_and_expanded_gradient(blocks: None) -> None:
    """As the model has them: heads transposed out of (B, S, H, D), one rope key expanded over all heads."""
    query = torch.randn(B, 7, H, D, dtype=torch.float64, requires_grad=True)
    key = torch.randn(B, 1, 7, D, dtype=torch.float64, requires_grad=True)
    both = torch.randn(B, 7, H, V + 3, dtype=torch.float64, requires_grad=True)
    leaves = (query, key, both)

    def run(attend) -> tuple[torch.Tensor, ...]:
        value = both.transpose(1, 2)[..., 3:]
        return torch.autograd.grad(attend(query.transpose(1, 2), key.expand(-1, H, -1, -1), value).sum(), leaves)

    actual = run(lambda q, k, v: mla_attention(q, k, v, None, SCALING))
    torch.testing.assert_close(actual, run(lambda q, k, v: plain(q, k, v, None)))


def test_lies_in_memory_as_the_output_projection_wants_it() -> None:
    assert mla_attention(*draw(4, 6), None, SCALING).transpose(1, 2).is_contiguous()


def test_never_holds_the_scores_of_all_heads_and_keeps_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK_ROWS", 4)
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 4 * 32)
    inputs = draw(32, 32)
    outputs = []
    kept = tensors_kept(lambda: outputs.append(mla_attention(*inputs, None, SCALING)))
    assert sorted(tensor.numel() for tensor in kept.values()) == sorted(t.numel() for t in (*inputs, outputs[0]))
    largest = largest_tensor_made(lambda: torch.autograd.grad(mla_attention(*inputs, None, SCALING).sum(), inputs))
    assert largest == B * H * 32 * D < H * 32 * 32
