"""Rotary position embedding of the decoupled MLA queries and keys (Su et al. 2021; DeepSeek-V2, section 2.1.3)."""

import torch


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return `x` (B, H, S, R) rotated; pairs are (i, i + R/2). `cos` and `sin` are (B or 1, S, R), halves equal."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return x * cos + _rotate_half(x) * sin


def apply_rope_interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return `x` (B, H, S, R) rotated, where published weights hold pairs as (2i, 2i + 1).

    The result is in the halves layout: dimension i and i + R/2 are the pair. Queries and keys are permuted alike, so
    their products, all that attention sees, do not change, and the cache holds what `apply_rope` would have given.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)


def rope_backward(grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Return the gradient to `x` (B, H, S, R), given that to the rotated: turned back by the same angles."""
    turned = apply_rope(grad, cos, -sin)
    return turned.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if interleaved else turned


def assemble_query_key(
    q: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key (B, H, S, N + R) of MLA with the last R columns rotated.

    Args:
        q: the projected queries (B, H, S, N + R).
        k_nope: the keys expanded from the latent (B, H, S, N).
        k_rope: the key shared by all heads (B, 1, S, R).
        cos: (B or 1, S, R), halves equal.
        sin: likewise.
        interleaved: whether the R columns hold pairs as (2i, 2i + 1); in the result they are (i, i + R/2).

    Source: DeepSeek-V2, section 2.1.3, equations 16 to 18.
    """
    rotate = apply_rope_interleaved if interleaved else apply_rope
    q_nope, q_rope = q.split([k_nope.shape[-1], k_rope.shape[-1]], dim=-1)
    query = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1)
    return query, torch.cat((k_nope, rotate(k_rope, cos, sin).expand(-1, q.shape[1], -1, -1)), dim=-1)
