"""Softmax attention with keys wider than values, in blocks: never more than a few MiB of scores, no causal half.

PyTorch's fused CPU kernel wants one head size for all three (V3: 192 for queries and keys, 128 for values) and
multiplies at a third of the processor's speed; its plain one holds all scores of all heads.
"""

# B batch, H heads, S queries, T keys, D query/key size, V value size

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 128
# Scores held at once: 2^20 fp32 numbers, 4 MiB, stay in the last-level cache of one core's share.
BLOCK_ELEMENTS = 2**20


def _blocks(query: torch.Tensor, key: torch.Tensor, causal: bool) -> Iterator[tuple[int, slice, slice, int]]:
    """Yield (batch row, heads, query rows, end of the keys they see), covering all of `query` (B, H, S, D)."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    for start in range(0, queries, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, queries))
        end = keys - queries + rows.stop if causal else keys
        step = max(1, BLOCK_ELEMENTS // (BLOCK_ROWS * max(end, 1)))
        for b in range(batch):
            for head in range(0, heads, step):
                yield b, slice(head, min(head + step, heads)), rows, end


def _weights(query, key, mask, scaling, b, heads, rows, end) -> torch.Tensor:
    """Return the attention weights of one block (heads, rows, end), at least fp32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.bmm(query[b, heads, rows].to(wide) * scaling, key[b, heads, :end].to(wide).mT)
    lowest = torch.finfo(wide).min
    # Adding the mask takes a tenth of the time that filling by it takes; the clamp keeps lowest + score finite.
    if mask is not None:
        part = mask[b if mask.shape[0] > 1 else 0]
        part = part[heads if part.shape[0] > 1 else slice(None), rows, :end]
        if part.dtype != torch.bool:
            return scores.add_(part).softmax(-1)
        closed = scores.new_zeros(part.shape).masked_fill_(~part, lowest)
        return scores.add_(closed).clamp_(min=lowest).softmax(-1).mul_(part.any(-1, keepdim=True))
    if (first := rows.start + key.shape[2] - query.shape[2]) + 1 < end:
        future = scores.new_full((rows.stop - rows.start, end - first), lowest).triu_(1)
        scores[:, :, first:] = scores[:, :, first:].add_(future).clamp_(min=lowest)
    return scores.softmax(-1)


def mla_attention_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return what `mla_attention` does, whose arguments it has, without autograd or autocast."""
    batch, heads, queries, _ = query.shape
    # (B, S, H, V) in memory, as the output projection wants it.
    output = value.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    for b, head, rows, end in _blocks(query, key, mask is None):
        weights = _weights(query, key, mask, scaling, b, head, rows, end).to(value.dtype)
        output[b, head, rows] = torch.bmm(weights, value[b, head, :end])
    return output


class _MLAAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        output = mla_attention_forward(query, key, value, mask, scaling)
        ctx.save_for_backward(query, key, value, mask, output)
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):
            query, key, value, mask, output = ctx.saved_tensors
            return *mla_attention_backward(grad, query, key, value, mask, output, ctx.scaling), None, None


def mla_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    output: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to `query`, `key` and `value`, given that to the output (B, H, S, V)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    grad_query = torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
    delta = (grad.to(wide) * output).sum(-1, keepdim=True)
    for b, head, rows, end in _blocks(query, key, mask is None):
        weights = _weights(query, key, mask, scaling, b, head, rows, end)
        g = grad[b, head, rows]
        grad_value[b, head, :end] += torch.bmm(weights.to(value.dtype).mT, g)
        grad_scores = torch.bmm(g, value[b, head, :end].mT).to(wide).sub_(delta[b, head, rows])
        grad_scores = grad_scores.mul_(weights).mul_(scaling).to(query.dtype)
        grad_query[b, head, rows] = torch.bmm(grad_scores, key[b, head, :end])
        grad_key[b, head, :end] += torch.bmm(grad_scores.mT, query[b, head, rows])
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def mla_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return softmax(query @ key^T * scaling) @ value: (B, H, S, V), laid out in memory as (B, S, H, V).

    Scores and softmax are at least fp32 whatever the dtype. Kept for backward: the inputs and the output; weights are
    computed again.

    Args:
        query: (B, H, S, D). key: (B, H, T, D). value: (B, H, T, V).
        mask: None for causal (the last query stands at the last key), else bool (True: may attend) or additive,
            (1 or B, 1 or H, S, T). A query that a bool mask lets attend to nothing gets zeros, as from PyTorch.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    with torch.autocast(device, enabled=False):
        return _MLAAttention.apply(query, key, value, mask, scaling)
