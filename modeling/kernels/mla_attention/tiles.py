"""Tiles of rows, and which keys a query sees: what the forward and both backward kernels have in common."""

# S queries, T keys, N nope, R rope

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def load_rows(ptr, row, num_rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return rows (len(row), BLOCK), zeros past the last row and column."""
    column = tl.arange(0, BLOCK)
    mask = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, row, num_rows, stride, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Write rows (len(row), BLOCK), without those past the last row and column."""
    column = tl.arange(0, BLOCK)
    mask = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(ptr + row.to(tl.int64)[:, None] * stride + column[None, :], rows, mask=mask)


@triton.jit
def keys_seen(first_ptr, end_ptr, query, num_queries, num_keys, RANGES: tl.constexpr):
    """Return the first key that each query sees and the one behind the last; none for queries past the end."""
    if RANGES:
        first = tl.load(first_ptr + query, mask=query < num_queries, other=num_keys)
        end = tl.load(end_ptr + query, mask=query < num_queries, other=0)
    else:
        first = tl.where(query < num_queries, 0, num_keys)
        end = tl.where(query < num_queries, query + 1 + num_keys - num_queries, 0)
    return first, end


@triton.jit
def scores_of(
    q_nope,
    q_rope,
    k_nope,
    k_rope,
    query,
    key,
    first,
    end,
    mask_ptr,
    mask_s,
    mask_t,
    factor,
    MASK: tl.constexpr,
):
    """Return the scores (queries, keys) times `factor`, -inf where a query does not see a key."""
    scores = tl.dot(q_nope, tl.trans(k_nope), input_precision="ieee")
    scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee") * factor
    seen = (key[None, :] >= first[:, None]) & (key[None, :] < end[:, None])
    if MASK:
        at = mask_ptr + query.to(tl.int64)[:, None] * mask_s + key[None, :] * mask_t
        seen &= tl.load(at, mask=seen, other=0) != 0
    return tl.where(seen, scores, float("-inf"))
