"""Absorbed MLA attention: the queries meet the latent cache itself (DeepSeek-V2, section 2.1; appendix C)."""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import torch

# Half precision on CPU: so many keys are one block, and the rest, at most one less, is multiplied in fp32.
BLOCK_KEYS = 64


def mla_decode(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    lengths_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention output in latent space (B, H, S, L) and the attention weights (B, H, S, T).

    The heads are query rows of one shared key, so the cache is read once for all of them: per key 2L + R
    multiply-adds a row, against the expansion of every cached latent into H keys and values.

    Args:
        mask: None (every query sees every key), bool (True: may attend) or additive, broadcastable to (B, H, S, T).
        lengths_B: where rows are of different lengths, how many keys of each are valid; its last query stands at the
            last of them, and each query sees the keys up to its own. None for all keys, and no causal order.
    """
    B, H, S, L = q_latent_BHSL.shape
    dtype = q_latent_BHSL.dtype
    wide = torch.promote_types(dtype, torch.float32)
    q_latent = (q_latent_BHSL * scaling).reshape(B, H * S, L)
    q_rope = (q_rope_BHSR * scaling).reshape(B, H * S, -1)
    parts = [
        (keys, latent_BTL[:, keys].to(product), rope_BTR[:, keys].to(product)) for keys, product in _parts(latent_BTL)
    ]
    scores = [
        _product(q_latent.to(latent.dtype), latent.mT).to(wide) + _product(q_rope.to(rope.dtype), rope.mT)
        for _, latent, rope in parts
    ]
    scores = torch.cat(scores, -1) if len(scores) > 1 else scores[0]
    scores = scores.view(B, H, S, -1)
    if mask is not None:
        # A query that may attend to nothing (left padding) gets even weights, not NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if lengths_B is not None:
        scores = scores.masked_fill(~_within(lengths_B, S, latent_BTL.shape[1]), torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(dtype)
    by_row = weights.view(B, H * S, -1)
    # Contiguous, because another distance between rows is another program, too.
    output = [_product(by_row[..., keys].to(latent.dtype).contiguous(), latent) for keys, latent, _ in parts]
    total = output[0] if len(output) == 1 else output[0] + output[1]
    return total.to(dtype).view(B, H, S, L), weights


def _within(lengths_B: torch.Tensor, num_queries: int, num_keys: int) -> torch.Tensor:
    """Return (B, 1, S, T): which keys each query sees where lengths differ."""
    keys, queries = (torch.arange(size, device=lengths_B.device) for size in (num_keys, num_queries))
    return keys <= (lengths_B[:, None, None, None] - num_queries + queries[:, None])


def mla_decode_backward(
    grad_BHSL: torch.Tensor,
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    lengths_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to queries and cache (q_latent, q_rope, latent, rope), given that to the output."""
    wide = torch.promote_types(q_latent_BHSL.dtype, torch.float32)
    inputs = (q_latent_BHSL, q_rope_BHSR, latent_BTL, rope_BTR)
    q_latent, q_rope, latent, rope, grad = (x.to(wide) for x in (*inputs, grad_BHSL))
    _, weights = mla_decode(q_latent, q_rope, latent, rope, mask, scaling, lengths_B)
    grad_weights = grad @ latent[:, None].mT
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) * scaling
    grad_latent = torch.einsum("bhst,bhsl->btl", grad_scores, q_latent) + torch.einsum("bhst,bhsl->btl", weights, grad)
    grads = (
        grad_scores @ latent[:, None],
        grad_scores @ rope[:, None],
        grad_latent,
        torch.einsum("bhst,bhsr->btr", grad_scores, q_rope),
    )
    a, b, c, d = (gradient.to(x.dtype) for gradient, x in zip(grads, inputs, strict=True))
    return a, b, c, d


def _parts(latent_BTL: torch.Tensor) -> list[tuple[slice, torch.dtype]]:
    """Return which keys to multiply in which dtype: all in their own, or whole blocks in it and the rest in fp32.

    For half precision on CPU oneDNN compiles a program for every length, and decoding makes a new one at each token:
    at the bench model's sizes 5 ms, as much as all else of a step (benchmarks/LOG.md). fp32 goes to MKL, which has
    none to compile.
    """
    dtype, length = latent_BTL.dtype, latent_BTL.shape[1]
    half_on_cpu = latent_BTL.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    if not half_on_cpu or torch.compiler.is_compiling() or length % BLOCK_KEYS == 0:
        return [(slice(None), dtype)]
    whole = length // BLOCK_KEYS * BLOCK_KEYS
    rest = (slice(whole, None), torch.float32)
    return [(slice(whole), dtype), rest] if whole else [rest]


def _product(a_BMK: torch.Tensor, b_BKN: torch.Tensor) -> torch.Tensor:
    # A batched product of one copies its transposed side, and takes three times as long; the plain one does not.
    return (a_BMK[0] @ b_BKN[0])[None] if a_BMK.shape[0] == 1 else a_BMK @ b_BKN


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
