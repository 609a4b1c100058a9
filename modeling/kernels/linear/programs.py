"""The Triton programs of products with frozen block-fp8 weights, whose codes are read as they are stored."""

# T tokens, R outputs of the layer (rows of the weight), C its inputs

import triton
import triton.language as tl

from ..block_fp8.kernel import decode


@triton.jit
def _tile(num_first, num_second, GROUP: tl.constexpr):
    """Return this program's block in two dimensions, GROUP of the first beside each other."""
    group = tl.program_id(0) // (GROUP * num_second)
    here = tl.minimum(num_first - group * GROUP, GROUP)
    place = tl.program_id(0) % (GROUP * num_second)
    return group * GROUP + place % here, place // here


@triton.jit
def decoding_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    stride_x,
    stride_codes,
    part_rows,
    part_blocks,
    scale_columns,
    INNER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FORWARD: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Write a tile of x W^T (FORWARD, INNER = C) or of x W (INNER = R), for the weight W of codes and scales.

    The decoded weight is the left operand, which Hopper's tensor cores take from registers: the tile is transposed.
    """
    token_block, output_block = _tile(tl.cdiv(num_tokens, BLOCK_T), tl.cdiv(num_outputs, BLOCK_N), GROUP)
    token = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    output = output_block * BLOCK_N + tl.arange(0, BLOCK_N)
    read_token = tl.minimum(token, num_tokens - 1).to(tl.int64)
    read_output = tl.minimum(output, num_outputs - 1)
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + read_token[None, :] * stride_x + inner[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for start in range(0, INNER, BLOCK_K):
        inside = inner + start < INNER
        if FORWARD:
            row, column = read_output[:, None], (start + inner)[None, :]
            # A tile of BLOCK_K columns is within one block of 128; its rows may be of several.
            scale_row, scale_column = read_output[:, None], start // 128
        else:
            row, column = (start + inner)[None, :], read_output[:, None]
            scale_row, scale_column = tl.minimum(start + inner, INNER - 1)[None, :], output_block * BLOCK_N // 128
        block = scale_row // part_rows * part_blocks + scale_row % part_rows // 128
        scale = tl.load(scale_ptr + block * scale_columns + scale_column)
        codes_ptrs = codes_ptr + row.to(tl.int64) * stride_codes + column
        if INNER % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            codes = tl.load(codes_ptrs)
        else:
            x = tl.load(x_ptrs, mask=inside[:, None], other=0.0)
            codes = tl.load(codes_ptrs, mask=inside[None, :], other=0)
        weight = (decode(codes, NATIVE) * scale).to(x.dtype)
        total = tl.dot(weight, x, total, input_precision="ieee")
        x_ptrs += BLOCK_K
    out_ptrs = out_ptr + token.to(tl.int64)[None, :] * num_outputs + output[:, None]
    tl.store(out_ptrs, total, mask=(token < num_tokens)[None, :] & (output < num_outputs)[:, None])


@triton.jit
def quantized_kernel(
    x_ptr,
    x_scale_ptr,
    codes_ptr,
    scale_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    stride_x_scale,
    stride_codes,
    part_rows,
    part_blocks,
    scale_columns,
    INNER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Write a tile of x W^T, both codes: 128 columns at a time, each product scaled and summed in fp32.

    ONE_SCALE: all rows of a tile of the weight are of one block.
    """
    token_block, output_block = _tile(tl.cdiv(num_tokens, BLOCK_T), tl.cdiv(num_outputs, BLOCK_N), GROUP)
    token = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    output = output_block * BLOCK_N + tl.arange(0, BLOCK_N)
    read_token = tl.minimum(token, num_tokens - 1)
    read_output = tl.minimum(output, num_outputs - 1)
    inner = tl.arange(0, 128)
    x_ptrs = x_ptr + read_token.to(tl.int64)[:, None] * INNER + inner[None, :]
    codes_ptrs = codes_ptr + read_output.to(tl.int64)[None, :] * stride_codes + inner[:, None]
    scale_row = output_block * BLOCK_N if ONE_SCALE else read_output
    block = scale_row // part_rows * part_blocks + scale_row % part_rows // 128
    scale_ptrs = scale_ptr + block * scale_columns
    x_scale_ptrs = x_scale_ptr + read_token
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for start in range(0, INNER, 128):
        if INNER % 128 == 0:
            x = tl.load(x_ptrs)
            codes = tl.load(codes_ptrs)
        else:
            x = tl.load(x_ptrs, mask=inner[None, :] < INNER - start, other=0)
            codes = tl.load(codes_ptrs, mask=inner[:, None] < INNER - start, other=0)
        if NATIVE:
            product = tl.dot(x.to(tl.float8e4nv, bitcast=True), codes.to(tl.float8e4nv, bitcast=True))
        else:
            # Every code is a number of bf16.
            product = tl.dot(decode(x, NATIVE).to(tl.bfloat16), decode(codes, NATIVE).to(tl.bfloat16))
        x_scale = tl.load(x_scale_ptrs)
        scale = tl.load(scale_ptrs)
        if ONE_SCALE:
            total += product * (x_scale * scale)[:, None]
        else:
            total += product * (x_scale[:, None] * scale[None, :])
        x_ptrs += 128
        codes_ptrs += 128
        scale_ptrs += 1
        x_scale_ptrs += stride_x_scale
    out_ptrs = out_ptr + token.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(out_ptrs, total, mask=(token < num_tokens)[:, None] & (output < num_outputs)[None, :])
