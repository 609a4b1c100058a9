"""The product of sorted rows with their experts' weights, and with low-rank factors in the same pass over the rows.

With a RANK, y = x W + s (x L) R: L (in, r) meets the rows as they stream by, R (r, out) what has been summed up.
"""

import triton
import triton.language as tl

from .tiles import load_rows, load_weights


@triton.jit
def load_factor(
    factor_ptr,
    expert,
    column,
    num_columns,
    DTYPE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return (BLOCK_RANK, BLOCK) of an expert's factor (E, RANK, num_columns), zeros beyond it."""
    rank = tl.arange(0, BLOCK_RANK)[:, None]
    columns = (column + tl.arange(0, BLOCK))[None, :]
    place = factor_ptr + (expert.to(tl.int64) * RANK + rank) * num_columns + columns
    return tl.load(place, mask=(rank < RANK) & (columns < num_columns), other=0.0).to(DTYPE)


@triton.jit
def drop(x, keep_ptr, row, inside, column, num_columns, BLOCK: tl.constexpr):
    """Return `x` (BLOCK_M, BLOCK) with zeros where `keep` says so at these rows, from `column` on."""
    columns = (column + tl.arange(0, BLOCK))[None, :]
    keep = tl.load(keep_ptr + row[:, None] * num_columns + columns, mask=inside[:, None] & (columns < num_columns))
    return tl.where(keep != 0, x, tl.zeros_like(x))


@triton.jit
def add_low_rank(
    accumulator,
    low,
    right_ptr,
    expert,
    column,
    num_columns,
    scaling,
    DTYPE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return `accumulator + scaling * low R` at the columns from `column` on."""
    right = load_factor(right_ptr, expert, column, num_columns, DTYPE, RANK, BLOCK_RANK, BLOCK_N)
    return tl.dot((low * scaling).to(DTYPE), right, accumulator, input_precision="ieee")


@triton.jit
def store_low(low_ptr, low, row, inside, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr):
    """Write `low` (BLOCK_M, RANK) to these rows."""
    rank = tl.arange(0, BLOCK_RANK)[None, :]
    tl.store(low_ptr + row[:, None].to(tl.int64) * RANK + rank, low, mask=inside[:, None] & (rank < RANK))


@triton.jit
def multiply(
    source,
    first,
    row,
    inside,
    stride,
    weight,
    scale_ptr,
    stride_expert,
    stride_out,
    stride_in,
    num_out,
    num_in,
    expert,
    column,
    left_ptr,
    keep_ptr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    OVER_OUT: tl.constexpr,
    EVEN: tl.constexpr,
    SOURCE_TMA: tl.constexpr,
    TMA: tl.constexpr,
    FP8: tl.constexpr,
    DROP: tl.constexpr,
):
    """Return x W (BLOCK_M, BLOCK_N) from `column` on, and x L (BLOCK_M, BLOCK_RANK), both in fp32.

    W is the expert's weight, `in` to `out`, or with OVER_OUT `out` to `in`. With DROP x meets L with zeros in it.
    """
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    low = tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32)
    size = num_out if OVER_OUT else num_in
    for k in range(0, size, BLOCK_K):
        x = load_rows(source, first, row, inside, k, stride, size, BLOCK_K, EVEN, SOURCE_TMA)
        if OVER_OUT:
            w = load_weights(
                weight,
                scale_ptr,
                expert,
                k,
                column,
                stride_expert,
                stride_out,
                stride_in,
                num_out,
                num_in,
                DTYPE,
                BLOCK_K,
                BLOCK_N,
                PARTS,
                EVEN,
                TMA,
                FP8,
            )
        else:
            w = load_weights(
                weight,
                scale_ptr,
                expert,
                column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                num_out,
                num_in,
                DTYPE,
                BLOCK_N,
                BLOCK_K,
                PARTS,
                EVEN,
                TMA,
                FP8,
            ).T
        accumulator = tl.dot(x, w, accumulator, input_precision="ieee")
        if RANK:
            if DROP:
                x = drop(x, keep_ptr, row, inside, k, size, BLOCK_K)
            left = load_factor(left_ptr, expert, k, size, DTYPE, RANK, BLOCK_RANK, BLOCK_K)
            low = tl.dot(x, left.T, low, input_precision="ieee")
    return accumulator, low
