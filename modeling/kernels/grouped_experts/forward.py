"""Kernels of the routed experts' forward pass, with or without low-rank terms.

gate_up gathers the tokens, multiplies them with gate and up at once, and ends in SwiGLU and the routing weight;
`rows` multiplies sorted rows and writes each to the place of its token and choice; `sum` adds a token's choices up.
"""

import triton
import triton.language as tl

from .product import add_low_rank, drop, load_factor, multiply, store_low
from .tiles import find_tile, last_program, load_rows, load_weights


@triton.jit
def gate_up_kernel(
    x_ptr,
    weight,
    scale_ptr,
    left_ptr,
    right_ptr,
    keep_ptr,
    weights_ptr,
    rows_ptr,
    tiles_ptr,
    used_ptr,
    ends_ptr,
    hidden_ptr,
    active_ptr,
    low_ptr,
    num_tiles,
    num_in,
    width,
    stride_x,
    stride_expert,
    stride_out,
    stride_in,
    scaling,
    TOP_K: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    FP8: tl.constexpr,
    DROP: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Write weight * silu(gate) * up of one tile (S, I), and with SAVE gate and up (S, 2I) and x L (S, RANK)."""
    used = tl.load(used_ptr)
    last = last_program(used * tl.cdiv(width, BLOCK_N), PERSISTENT)
    for program in range(tl.program_id(0), last, tl.num_programs(0) if PERSISTENT else 1):
        expert, first, column = find_tile(program, used, tiles_ptr, num_tiles, width, BLOCK_N, GROUP)
        DTYPE: tl.constexpr = active_ptr.dtype.element_ty
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tl.load(ends_ptr + expert)
        choice = tl.load(rows_ptr + row, mask=inside, other=0)
        token = (choice.to(tl.int32) // TOP_K).to(tl.int64)
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        low = tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32)
        for k in range(0, num_in, BLOCK_K):
            x = load_rows(x_ptr, first, token, inside, k, stride_x, num_in, BLOCK_K, EVEN, False)
            w = load_weights(
                weight,
                scale_ptr,
                expert,
                column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                2 * width,
                num_in,
                DTYPE,
                BLOCK_N,
                BLOCK_K,
                PARTS,
                EVEN,
                TMA,
                FP8,
            )
            gate = tl.dot(x, w.T, gate, input_precision="ieee")
            w = load_weights(
                weight,
                scale_ptr,
                expert,
                width + column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                2 * width,
                num_in,
                DTYPE,
                BLOCK_N,
                BLOCK_K,
                PARTS,
                EVEN,
                TMA,
                FP8,
            )
            up = tl.dot(x, w.T, up, input_precision="ieee")
            if RANK:
                if DROP:
                    x = drop(x, keep_ptr, token, inside, k, num_in, BLOCK_K)
                left = load_factor(left_ptr, expert, k, num_in, DTYPE, RANK, BLOCK_RANK, BLOCK_K)
                low = tl.dot(x, left.T, low, input_precision="ieee")
        if RANK:
            gate = add_low_rank(
                gate, low, right_ptr, expert, column, 2 * width, scaling, DTYPE, RANK, BLOCK_RANK, BLOCK_N
            )
            up = add_low_rank(
                up, low, right_ptr, expert, width + column, 2 * width, scaling, DTYPE, RANK, BLOCK_RANK, BLOCK_N
            )
            if SAVE and column == 0:
                store_low(low_ptr, low, row, inside, RANK, BLOCK_RANK)
        columns = (column + tl.arange(0, BLOCK_N))[None, :]
        mask = inside[:, None] & (columns < width)
        place = row[:, None].to(tl.int64) * width + columns
        # The activation is made of what is kept, so that the backward pass recomputes the same.
        gate = gate.to(DTYPE)
        up = up.to(DTYPE)
        if SAVE:
            twice = row[:, None].to(tl.int64) * (2 * width) + columns
            tl.store(hidden_ptr + twice, gate, mask=mask)
            tl.store(hidden_ptr + twice + width, up, mask=mask)
        gate = gate.to(tl.float32)
        routing = tl.load(weights_ptr + choice, mask=inside, other=0.0).to(tl.float32)[:, None]
        tl.store(active_ptr + place, (gate * tl.sigmoid(gate) * up.to(tl.float32) * routing).to(DTYPE), mask=mask)


@triton.jit
def rows_kernel(
    source,
    weight,
    scale_ptr,
    left_ptr,
    right_ptr,
    keep_ptr,
    rows_ptr,
    tiles_ptr,
    used_ptr,
    ends_ptr,
    out_ptr,
    low_ptr,
    num_tiles,
    num_out,
    num_in,
    stride_source,
    stride_expert,
    stride_out,
    stride_in,
    scaling,
    TOP_K: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    PARTS: tl.constexpr,
    OVER_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN: tl.constexpr,
    SOURCE_TMA: tl.constexpr,
    TMA: tl.constexpr,
    FP8: tl.constexpr,
    DROP: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Write the product of one tile of sorted rows to the rows `token * K + k`, and with SAVE x L (S, RANK).

    Forward (in to out) DROP is of this product's input, by sorted row; backward (OVER_OUT) of its output, by token.
    """
    num_columns = num_in if OVER_OUT else num_out
    used = tl.load(used_ptr)
    last = last_program(used * tl.cdiv(num_columns, BLOCK_N), PERSISTENT)
    for program in range(tl.program_id(0), last, tl.num_programs(0) if PERSISTENT else 1):
        expert, first, column = find_tile(program, used, tiles_ptr, num_tiles, num_columns, BLOCK_N, GROUP)
        DTYPE: tl.constexpr = out_ptr.dtype.element_ty
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tl.load(ends_ptr + expert)
        choice = tl.load(rows_ptr + row, mask=inside, other=0)
        product, low = multiply(
            source,
            first,
            row.to(tl.int64),
            inside,
            stride_source,
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
            DTYPE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            BLOCK_RANK,
            RANK,
            PARTS,
            OVER_OUT,
            EVEN,
            SOURCE_TMA,
            TMA,
            FP8,
            DROP and not OVER_OUT,
        )
        if RANK:
            if DROP and OVER_OUT:
                added = add_low_rank(
                    tl.zeros_like(product),
                    low,
                    right_ptr,
                    expert,
                    column,
                    num_columns,
                    scaling,
                    DTYPE,
                    RANK,
                    BLOCK_RANK,
                    BLOCK_N,
                )
                token = (choice.to(tl.int32) // TOP_K).to(tl.int64)
                product += drop(added, keep_ptr, token, inside, column, num_columns, BLOCK_N)
            else:
                product = add_low_rank(
                    product, low, right_ptr, expert, column, num_columns, scaling, DTYPE, RANK, BLOCK_RANK, BLOCK_N
                )
            if SAVE and column == 0:
                store_low(low_ptr, low, row, inside, RANK, BLOCK_RANK)
        columns = (column + tl.arange(0, BLOCK_N))[None, :]
        mask = inside[:, None] & (columns < num_columns)
        tl.store(out_ptr + choice[:, None] * num_columns + columns, product.to(DTYPE), mask=mask)


@triton.jit
def sum_kernel(by_row_ptr, out_ptr, num_numbers, num_columns, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the TOP_K rows of BLOCK numbers of the output (T, H); in fp32, always in the same order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < num_numbers
    token = place // num_columns
    row = by_row_ptr + token * (TOP_K * num_columns) + place % num_columns
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        total += tl.load(row + k * num_columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, total, mask=mask)
