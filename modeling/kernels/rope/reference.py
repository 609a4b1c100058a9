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
