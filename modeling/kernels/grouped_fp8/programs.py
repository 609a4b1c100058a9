"""The Triton programs of the routed experts with both operands in fp8; codes are read and written as stored.

Products of 128 columns come from the tensor cores and are scaled and summed up in fp32 (DeepSeek-V3 report, section
3.3.2): BLOCK_K is 128. BLOCK_N divides it, so that all rows of a tile of weights share a scale.
"""

import triton
import triton.language as tl

from ..block_fp8.kernel import quantized
from ..grouped_experts.tiles import SCALE_BLOCK, decode, find_tile, last_program, load_rows, load_weights


@triton.jit
def add_product(
    total,
    x,
    x_scale,
    weight,
    scale_ptr,
    expert,
    part,
    column,
    k,
    stride_expert,
    stride_out,
    stride_in,
    num_out,
    num_in,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Return `total` (BLOCK_M, BLOCK_N) and the product of 128 columns from `k` on: rows of x by rows of W.

    W's rows are those of the stacked matrix `part` from `column` on.
    """
    height = num_out // PARTS
    CODES: tl.constexpr = tl.float8e4nv if NATIVE else tl.uint8
    codes = load_weights(
        weight,
        scale_ptr,
        expert,
        part * height + column,
        k,
        stride_expert,
        stride_out,
        stride_in,
        num_out,
        num_in,
        CODES,
        BLOCK_N,
        BLOCK_K,
        PARTS,
        EVEN,
        TMA,
        False,
    )
    block = (expert * PARTS + part) * tl.cdiv(height, SCALE_BLOCK) + column // SCALE_BLOCK
    scale = tl.load(scale_ptr + block.to(tl.int64) * tl.cdiv(num_in, SCALE_BLOCK) + k // SCALE_BLOCK)
    if NATIVE:
        product = tl.dot(x, codes.T)
    else:
        # Decoded numbers are a 256th of what the codes mean.
        product = tl.dot(decode(x), decode(codes).T)
        scale = scale * 65536.0
    return total + product * (x_scale * scale)[:, None]


@triton.jit
def gate_up_kernel(
    x_ptr,
    x_scale_ptr,
    weight,
    scale_ptr,
    weights_ptr,
    rows_ptr,
    tiles_ptr,
    used_ptr,
    ends_ptr,
    hidden_ptr,
    active_ptr,
    active_scale_ptr,
    num_tiles,
    num_rows,
    num_in,
    width,
    stride_x,
    stride_x_scale,
    stride_expert,
    stride_out,
    stride_in,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    NATIVE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Write weight * silu(gate) * up of one tile as codes (S, I) and scales (N, S), and with SAVE gate and up (S, 2I).

    BLOCK_N is 128: a tile's columns share their rows' scales.
    """
    used = tl.load(used_ptr)
    last = last_program(used * tl.cdiv(width, BLOCK_N), PERSISTENT)
    for program in range(tl.program_id(0), last, tl.num_programs(0) if PERSISTENT else 1):
        expert, first, column = find_tile(program, used, tiles_ptr, num_tiles, width, BLOCK_N, GROUP)
        DTYPE: tl.constexpr = hidden_ptr.dtype.element_ty
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tl.load(ends_ptr + expert)
        choice = tl.load(rows_ptr + row, mask=inside, other=0)
        token = (choice.to(tl.int32) // TOP_K).to(tl.int64)
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, num_in, BLOCK_K):
            x = load_rows(x_ptr, first, token, inside, k, stride_x, num_in, BLOCK_K, EVEN, False)
            x_scale = tl.load(x_scale_ptr + k // SCALE_BLOCK * stride_x_scale + token, mask=inside, other=0.0)
            gate = add_product(
                gate,
                x,
                x_scale,
                weight,
                scale_ptr,
                expert,
                0,
                column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                2 * width,
                num_in,
                2,
                BLOCK_N,
                BLOCK_K,
                EVEN,
                TMA,
                NATIVE,
            )
            up = add_product(
                up,
                x,
                x_scale,
                weight,
                scale_ptr,
                expert,
                1,
                column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                2 * width,
                num_in,
                2,
                BLOCK_N,
                BLOCK_K,
                EVEN,
                TMA,
                NATIVE,
            )
        columns = (column + tl.arange(0, BLOCK_N))[None, :]
        mask = inside[:, None] & (columns < width)
        # The activation is made of what is kept, as the backward pass recomputes it.
        gate = gate.to(DTYPE)
        up = up.to(DTYPE)
        if SAVE:
            twice = row[:, None].to(tl.int64) * (2 * width) + columns
            tl.store(hidden_ptr + twice, gate, mask=mask)
            tl.store(hidden_ptr + twice + width, up, mask=mask)
        gate = gate.to(tl.float32)
        routing = tl.load(weights_ptr + choice, mask=inside, other=0.0).to(tl.float32)[:, None]
        # Columns beyond the width, which are of other matrices, have no part in a scale.
        active = tl.where(mask, gate * tl.sigmoid(gate) * up.to(tl.float32) * routing, 0.0)
        active_scale, codes = quantized(active, True, False, NATIVE)
        tl.store(active_ptr + row[:, None].to(tl.int64) * width + columns, codes, mask=mask)
        place = active_scale_ptr + column // SCALE_BLOCK * num_rows + row[:, None]
        tl.store(place, active_scale, mask=inside[:, None])


@triton.jit
def rows_kernel(
    source,
    source_scale_ptr,
    weight,
    scale_ptr,
    rows_ptr,
    tiles_ptr,
    used_ptr,
    ends_ptr,
    out_ptr,
    num_tiles,
    num_rows,
    num_out,
    num_in,
    stride_source,
    stride_expert,
    stride_out,
    stride_in,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN: tl.constexpr,
    SOURCE_TMA: tl.constexpr,
    TMA: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Write the product of one tile of sorted rows, codes (S, in) and scales (N, S), to the rows `token * K + k`."""
    used = tl.load(used_ptr)
    last = last_program(used * tl.cdiv(num_out, BLOCK_N), PERSISTENT)
    for program in range(tl.program_id(0), last, tl.num_programs(0) if PERSISTENT else 1):
        expert, first, column = find_tile(program, used, tiles_ptr, num_tiles, num_out, BLOCK_N, GROUP)
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tl.load(ends_ptr + expert)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, num_in, BLOCK_K):
            x = load_rows(source, first, row.to(tl.int64), inside, k, stride_source, num_in, BLOCK_K, EVEN, SOURCE_TMA)
            x_scale = tl.load(source_scale_ptr + k // SCALE_BLOCK * num_rows + row, mask=inside, other=0.0)
            total = add_product(
                total,
                x,
                x_scale,
                weight,
                scale_ptr,
                expert,
                0,
                column,
                k,
                stride_expert,
                stride_out,
                stride_in,
                num_out,
                num_in,
                1,
                BLOCK_N,
                BLOCK_K,
                EVEN,
                TMA,
                NATIVE,
            )
        choice = tl.load(rows_ptr + row, mask=inside, other=0)
        columns = (column + tl.arange(0, BLOCK_N))[None, :]
        mask = inside[:, None] & (columns < num_out)
        tl.store(out_ptr + choice[:, None] * num_out + columns, total.to(out_ptr.dtype.element_ty), mask=mask)
