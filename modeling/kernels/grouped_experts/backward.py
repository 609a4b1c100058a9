"""Kernels of the routed experts' backward pass that the forward pass has none alike of.

`activation` goes back through the down projection and SwiGLU; `over_rows` sums products over each expert's rows: the
gradients of weights and of low-rank factors.
"""

import triton
import triton.language as tl

from .product import add_low_rank, drop, multiply, store_low
from .tiles import find_tile, last_program

# Columns of SwiGLU's gradient that a program holds together.
COLUMNS_AT_ONCE = tl.constexpr(32)


@triton.jit
def activate_back(
    grad,
    column,
    hidden_ptr,
    grad_hidden_ptr,
    active_ptr,
    routing,
    row,
    inside,
    width,
    BLOCK: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Write the gradients of BLOCK columns from `column` on; return the sum over them of what the weights get.

    One half of the columns after the other while they are more than there are registers for.
    """
    if BLOCK > COLUMNS_AT_ONCE:
        HALF: tl.constexpr = BLOCK // 2
        halves = tl.split(grad.reshape(grad.shape[0], 2, HALF).permute(0, 2, 1))
        partial = tl.zeros((grad.shape[0],), tl.float32)
        for half in tl.static_range(2):
            partial += activate_back(
                halves[half],
                column + half * HALF,
                hidden_ptr,
                grad_hidden_ptr,
                active_ptr,
                routing,
                row,
                inside,
                width,
                HALF,
                SAVE,
            )
        return partial
    columns = (column + tl.arange(0, BLOCK))[None, :]
    mask = inside[:, None] & (columns < width)
    place = row[:, None] * (2 * width) + columns
    dtype = grad_hidden_ptr.dtype.element_ty
    gate = tl.load(hidden_ptr + place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + place + width, mask=mask, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    # Against the activation without its weight: this is the weight's gradient, and spares keeping the output.
    partial = tl.sum(grad * (silu * up), axis=1)
    if SAVE:
        tl.store(active_ptr + row[:, None] * width + columns, (silu * up * routing).to(dtype), mask=mask)
    grad *= routing
    tl.store(grad_hidden_ptr + place, (grad * up * share * (1.0 + gate - silu)).to(dtype), mask=mask)
    tl.store(grad_hidden_ptr + place + width, (grad * silu).to(dtype), mask=mask)
    return partial


@triton.jit
def activation_kernel(
    grad_ptr,
    weight,
    scale_ptr,
    left_ptr,
    right_ptr,
    keep_ptr,
    weights_ptr,
    hidden_ptr,
    rows_ptr,
    tiles_ptr,
    used_ptr,
    ends_ptr,
    grad_hidden_ptr,
    active_ptr,
    partial_ptr,
    low_ptr,
    num_tiles,
    num_out,
    width,
    stride_grad,
    stride_expert,
    stride_out,
    stride_in,
    scaling,
    TOP_K: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
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
    """Write one tile of the gradient to gate and up (S, 2I), and this tile's share of that to the routing weight.

    With SAVE also weight * silu(gate) * up (S, I), as the forward pass made it, and grad R^T (S, RANK).
    """
    used = tl.load(used_ptr)
    last = last_program(used * tl.cdiv(width, BLOCK_N), PERSISTENT)
    for program in range(tl.program_id(0), last, tl.num_programs(0) if PERSISTENT else 1):
        expert, first, column = find_tile(program, used, tiles_ptr, num_tiles, width, BLOCK_N, GROUP)
        DTYPE: tl.constexpr = grad_hidden_ptr.dtype.element_ty
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tl.load(ends_ptr + expert)
        choice = tl.load(rows_ptr + row, mask=inside, other=0)
        token = (choice.to(tl.int32) // TOP_K).to(tl.int64)
        grad, low = multiply(
            grad_ptr,
            first,
            token,
            inside,
            stride_grad,
            weight,
            scale_ptr,
            stride_expert,
            stride_out,
            stride_in,
            num_out,
            width,
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
            1,
            True,
            EVEN,
            False,
            TMA,
            FP8,
            False,
        )
        wide_row = row.to(tl.int64)
        if RANK:
            if DROP:
                added = add_low_rank(
                    tl.zeros_like(grad),
                    low,
                    right_ptr,
                    expert,
                    column,
                    width,
                    scaling,
                    DTYPE,
                    RANK,
                    BLOCK_RANK,
                    BLOCK_N,
                )
                grad += drop(added, keep_ptr, wide_row, inside, column, width, BLOCK_N)
            else:
                grad = add_low_rank(
                    grad, low, right_ptr, expert, column, width, scaling, DTYPE, RANK, BLOCK_RANK, BLOCK_N
                )
            if SAVE and column == 0:
                store_low(low_ptr, low, row, inside, RANK, BLOCK_RANK)
        routing = tl.load(weights_ptr + choice, mask=inside, other=0.0).to(tl.float32)[:, None]
        partial = activate_back(
            grad, column, hidden_ptr, grad_hidden_ptr, active_ptr, routing, wide_row, inside, width, BLOCK_N, SAVE
        )
        tl.store(partial_ptr + choice * tl.cdiv(width, BLOCK_N) + column // BLOCK_N, partial, mask=inside)


@triton.jit
def over_rows_kernel(
    a_ptr,
    b_ptr,
    keep_ptr,
    rows_ptr,
    ends_ptr,
    out_ptr,
    size_a,
    size_b,
    stride_a,
    stride_b,
    stride_expert,
    stride_out_a,
    stride_out_b,
    scaling,
    TOP_K: tl.constexpr,
    GATHER_A: tl.constexpr,
    GATHER_B: tl.constexpr,
    DROP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write one tile of scaling * a^T b (size_a, size_b) over the sorted rows of an expert; zeros where it has none.

    What is gathered has a row for each token instead. With DROP some of `a` is dropped, by its own rows.
    """
    tiles_a = tl.cdiv(size_a, BLOCK_M)
    tiles = tiles_a * tl.cdiv(size_b, BLOCK_N)
    expert = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    column_a = tile % tiles_a * BLOCK_M
    columns_a = column_a + tl.arange(0, BLOCK_M)
    columns_b = tile // tiles_a * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        row = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        inside = row < end
        row_a = row
        row_b = row
        if GATHER_A or GATHER_B:
            token = (tl.load(rows_ptr + row, mask=inside, other=0).to(tl.int32) // TOP_K).to(tl.int64)
            row_a = token if GATHER_A else row
            row_b = token if GATHER_B else row
        mask = inside[:, None] & (columns_a < size_a)[None, :]
        a = tl.load(a_ptr + row_a[:, None] * stride_a + columns_a[None, :], mask=mask, other=0.0)
        mask = inside[:, None] & (columns_b < size_b)[None, :]
        b = tl.load(b_ptr + row_b[:, None] * stride_b + columns_b[None, :], mask=mask, other=0.0)
        if DROP:
            a = drop(a, keep_ptr, row_a, inside, column_a, size_a, BLOCK_M)
        total = tl.dot(a.T, b.to(a.dtype), total, input_precision="ieee")
    place = out_ptr + expert.to(tl.int64) * stride_expert
    place += columns_a[:, None] * stride_out_a + columns_b[None, :] * stride_out_b
    mask = (columns_a < size_a)[:, None] & (columns_b < size_b)[None, :]
    tl.store(place, (total * scaling).to(out_ptr.dtype.element_ty), mask=mask)
