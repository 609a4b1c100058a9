"""Attention over the latent cache against attention over the expanded keys and values, in float64."""

# B batch, S query tokens, T cached tokens, H heads, N nope, R rope, V value, L latent

import pytest
import torch

from seeklet.modeling.kernels.mla_decode.reference import decode_is_cheaper, mla_decode
from tests.kernels.precision import assert_as_precise_as

B, H, N, R, V, L = 2, 3, 6, 4, 5, 11
SCALING = (N + R) ** -0.5


def draw(S: int, T: int) -> list[torch.Tensor]:
    """Return float64 q_nope, q_rope, latent, k_rope, up_key and up_value."""
    shapes = ((B, H, S, N), (B, H, S, R), (B, T, L), (B, T, R), (H, N, L), (H, V, L))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def absorbed(q_nope, q_rope, latent, k_rope, up_key, up_value, mask=None) -> torch.Tensor:
    output, _ = mla_decode(q_nope @ up_key, q_rope, latent, k_rope, mask, SCALING)
    return output @ up_value.mT


def expanded(q_nope, q_rope, latent, k_rope, up_key, up_value, mask=None) -> torch.Tensor:
    keys = torch.einsum("btl,hnl->bhtn", latent, up_key)
    values = torch.einsum("btl,hvl->bhtv", latent, up_value)
    scores = (q_nope @ keys.mT + q_rope @ k_rope[:, None].mT) * SCALING
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores)
    return scores.softmax(-1) @ values


def make_mask(kind: str, S: int, T: int) -> torch.Tensor | None:
    seen = torch.arange(T)[None, :] <= torch.arange(T - S, T)[:, None]
    if kind == "causal":
        return seen
    if kind == "left padding":
        # Two tokens in the second row; every query keeps a key, as T > S + 1.
        return seen & (torch.arange(T) >= torch.tensor([0, 2])[:, None, None, None])
    if kind == "additive":
        return torch.where(seen, 0.0, -1e30)
    return None


MASKS = ["none", "causal", "left padding", "additive"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("S", "T"), [(1, 3), (1, 9), (3, 9), (4, 7)])
def test_equals_attention_over_expanded_keys_and_values(S: int, T: int, mask: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(S, T)]
    made = make_mask(mask, S, T)
    actual, expected = absorbed(*inputs, mask=made), expanded(*inputs, mask=made)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(actual)
    gradients = torch.autograd.grad(actual, inputs, cotangent)
    wanted = torch.autograd.grad(expected, inputs, cotangent)
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(2, 4)]
    torch.autograd.gradcheck(lambda *args: absorbed(*args, mask=make_mask("causal", 2, 4)), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_errs_no_more_than_the_expanded_form(mask: str, dtype: torch.dtype) -> None:
    made = make_mask(mask, 3, 9)
    assert_as_precise_as(
        lambda *args: absorbed(*args, mask=made), lambda *args: expanded(*args, mask=made), draw(3, 9), dtype
    )


def test_weights_are_the_softmax_of_the_scores() -> None:
    q_nope, q_rope, latent, k_rope, up_key, _ = draw(2, 5)
    mask = make_mask("causal", 2, 5)
    assert mask is not None
    _, weights = mla_decode(q_nope @ up_key, q_rope, latent, k_rope, mask, SCALING)
    scores = torch.einsum("bhsn,hnl,btl->bhst", q_nope, up_key, latent) + torch.einsum("bhsr,btr->bhst", q_rope, k_rope)
    torch.testing.assert_close(weights, (scores * SCALING).masked_fill(~mask, float("-inf")).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_finite_numbers(dtype: torch.dtype) -> None:
    """As the padding's own queries on the left."""
    inputs = [tensor.to(dtype) for tensor in draw(2, 4)]
    nothing = torch.zeros(B, 1, 2, 4, dtype=torch.bool)
    lowest = torch.full((B, 1, 2, 4), torch.finfo(dtype).min, dtype=dtype)
    for mask in (nothing, lowest):
        assert absorbed(*inputs, mask=mask).isfinite().all()


def test_large_scores_do_not_overflow() -> None:
    inputs = [40 * tensor.float() for tensor in draw(1, 6)]
    assert absorbed(*inputs).isfinite().all()


# V3: kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim.
V3 = (512, 128, 64, 128)


def multiply_adds_per_head(num_queries: int, num_keys: int) -> tuple[int, int]:
    """Return the multiply-adds of (absorbed, expanded), product by product."""
    latent, nope, rope, value = V3
    absorbed = num_queries * latent * nope + num_queries * num_keys * (latent + rope)
    absorbed += num_queries * num_keys * latent + num_queries * latent * value
    expanded = num_keys * latent * (nope + value) + num_queries * num_keys * (nope + rope + value)
    return absorbed, expanded


@pytest.mark.parametrize("num_keys", [1, 2, 64, 200, 4096, 10**9])
@pytest.mark.parametrize("num_queries", [1, 2, 100, 164, 165, 170, 171, 4096])
def test_the_cheaper_form_is_the_one_with_fewer_multiply_adds(num_queries: int, num_keys: int) -> None:
    absorbed, expanded = multiply_adds_per_head(num_queries, num_keys)
    assert decode_is_cheaper(num_queries, num_keys, *V3) == (absorbed < expanded)


def test_crossover_at_v3_sizes_is_170_query_tokens() -> None:
    assert decode_is_cheaper(170, 10**9, *V3)
    assert not decode_is_cheaper(171, 10**9, *V3)
    assert decode_is_cheaper(1, 4096, *V3)
    assert not any(decode_is_cheaper(n, n, *V3) for n in (1, 2, 64, 4096))
