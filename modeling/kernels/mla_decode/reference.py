"""Absorbed MLA attention: the queries meet the latent cache itself (DeepSeek-V2, section 2.1; appendix C)."""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import torch


def mla_decode(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention output in latent space (B, H, S, L) and the attention weights (B, H, S, T).

    The heads are query rows of one shared key, so the cache is read once for all of them: per key 2L + R
    multiply-adds a row, against the expansion of every cached latent into H keys and values.

    Args:
        mask: None (every query sees every key), bool (True: may attend) or additive, broadcastable to (B, H, S, T).
    """
    B, H, S, L = q_latent_BHSL.shape
    q_latent = (q_latent_BHSL * scaling).reshape(B, H * S, L)
    q_rope = (q_rope_BHSR * scaling).reshape(B, H * S, -1)
    if B == 1:
        # A batched product of one copies its transposed side; the plain one takes it as it lies.
        scores = torch.addmm(q_rope[0] @ rope_BTR[0].t(), q_latent[0], latent_BTL[0].t())
    else:
        scores = torch.baddbmm(q_rope @ rope_BTR.mT, q_latent, latent_BTL.mT)
    scores = scores.view(B, H, S, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        # A query that may attend to nothing (left padding) gets even weights, not NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).to(q_latent_BHSL.dtype)
    output = weights.view(B, H * S, -1) @ latent_BTL
    return output.view(B, H, S, L), weights


def decode_is_cheaper(
    num_queries: int, num_keys: int, kv_lora_rank: int, qk_nope_head_dim: int, qk_rope_head_dim: int, v_head_dim: int
) -> bool:
    """Return whether attending in latent space takes fewer multiply-adds per head than expanding the latents.

    Expanded: every key's latent becomes a key and a value, then each query meets both. Absorbed: every query goes
    into latent space and its output back, and meets longer keys and values. At V3's sizes and a long cache the two
    meet at 170 query tokens; with as many queries as keys (training, prefill) expanding wins.
    """
    expansion = kv_lora_rank * (qk_nope_head_dim + v_head_dim)
    expanded = num_keys * expansion + num_queries * num_keys * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim)
    absorbed = num_queries * expansion + num_queries * num_keys * (2 * kv_lora_rank + qk_rope_head_dim)
    return absorbed < expanded
