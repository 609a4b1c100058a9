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
def queries_seeing(first_ptr, end_ptr, from_key, to_key, num_queries, num_keys, RANGES: tl.constexpr):
    """Return the first query that sees any of the keys `from_key` to before `to_key`, and the one behind the last."""
    from_query, to_query = tl.maximum(from_key + num_queries - num_keys, 0), num_queries
    if RANGES:
        lowest = tl.full((1024,), 2147483647, tl.int32)
        highest = tl.zeros((1024,), tl.int32)
        for start in range(0, num_queries, 1024):
            query = start + tl.arange(0, 1024)
            first, end = keys_seen(first_ptr, end_ptr, query, num_queries, num_keys, RANGES)
            sees = (first < to_key) & (end > from_key)
            lowest = tl.where(sees, tl.minimum(lowest, query), lowest)
            highest = tl.where(sees, tl.maximum(highest, query + 1), highest)
        to_query = tl.max(highest, axis=0)
        from_query = tl.minimum(tl.min(lowest, axis=0), to_query)
    return from_query, to_query


@triton.jit
def scores_of(q, k, query, key, seen_keys, mask, factor, MASK: tl.constexpr):
    """Return the scores (queries, keys) times `factor`, -inf where a query does not see a key.

    `q` and `k` are pairs of nope and rope, `seen_keys` a pair of first and end, `mask` its address and two strides.
    """
    scores = tl.dot(q[0], tl.trans(k[0]), input_precision="ieee")
    scores = tl.dot(q[1], tl.trans(k[1]), scores, input_precision="ieee") * factor
    seen = (key[None, :] >= seen_keys[0][:, None]) & (key[None, :] < seen_keys[1][:, None])
    if MASK:
        at = mask[0] + query.to(tl.int64)[:, None] * mask[1] + key[None, :] * mask[2]
        seen &= tl.load(at, mask=seen, other=0) != 0
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def gradient_of_scores(p, grad, value, delta):
    """Return the gradient to the scores (queries, keys) over `scaling`, given the weights and that to the output."""
    grad_p = tl.dot(grad, tl.trans(value), input_precision="ieee")
    return p * (grad_p - delta[:, None])
