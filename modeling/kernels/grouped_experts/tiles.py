"""What the products over sorted rows are made of: which tile is next, and how rows and weights are read.

How many tiles are used only the GPU knows. A kernel that fills a multiprocessor with one program has one for each, and
they take tile after tile; any other has a program for as many tiles as there can be.
"""

import triton
import triton.language as tl

# Rows and columns of fp8 codes that share a scale.
SCALE_BLOCK = tl.constexpr(128)


@triton.jit
def last_program(num_programs, PERSISTENT: tl.constexpr):
    """Return where this program's way through the `num_programs` tiles times columns ends; without PERSISTENT, at once.

    That the loop ends after one round the compiler sees: no register is taken for the next.
    """
    return num_programs if PERSISTENT else tl.minimum(num_programs, tl.program_id(0) + 1)


@triton.jit
def find_tile(program, used, tiles_ptr, num_tiles, num_columns, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Return the expert, the first row and the first column of one of the `used` tiles times columns.

    GROUP tiles of rows share their columns' weights in the cache before the next columns come.
    """
    columns = tl.cdiv(num_columns, BLOCK_N)
    first = program // (GROUP * columns) * GROUP
    size = tl.minimum(used - first, GROUP)
    within = program % (GROUP * columns)
    tile = first + within % size
    expert = tl.load(tiles_ptr + tile)
    row = tl.load(tiles_ptr + num_tiles + tile)
    return expert, row, within // size * BLOCK_N


@triton.jit
def load_rows(
    source,
    first,
    row,
    inside,
    column,
    stride,
    num_columns,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
):
    """Return (BLOCK_M, BLOCK_K) numbers of the rows `row`, which with TMA are those from `first` on."""
    if TMA:
        return source.load([first, column])
    else:
        columns = (column + tl.arange(0, BLOCK_K))[None, :]
        mask = inside[:, None] if EVEN else inside[:, None] & (columns < num_columns)
        return tl.load(source + row[:, None] * stride + columns, mask=mask, other=0.0)


@triton.jit
def decode(codes):
    """Return the float16 that is 1/256 of what the bits of e4m3 codes mean: s eeee mmm moved to s 0eeee mmm0000000."""
    half = ((codes.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -16385).to(tl.float16, bitcast=True)
    return tl.where((codes & 127) == 127, float("nan"), half)


@triton.jit
def load_weights(
    weight,
    scale_ptr,
    expert,
    row,
    column,
    stride_expert,
    stride_row,
    stride_column,
    num_rows,
    num_columns,
    DTYPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    FP8: tl.constexpr,
):
    """Return (BLOCK_ROWS, BLOCK_COLUMNS) numbers of an expert's weight (out, in) in DTYPE.

    With FP8 the scales are (E, PARTS, M, N) for PARTS matrices stacked by rows; BLOCK_COLUMNS divides 128.
    """
    rows = row + tl.arange(0, BLOCK_ROWS)
    if TMA:
        numbers = weight.load([expert, row, column]).reshape(BLOCK_ROWS, BLOCK_COLUMNS)
    else:
        columns = (column + tl.arange(0, BLOCK_COLUMNS))[None, :]
        place = weight + expert.to(tl.int64) * stride_expert + rows[:, None] * stride_row + columns * stride_column
        if EVEN:
            numbers = tl.load(place)
        else:
            numbers = tl.load(place, mask=(rows < num_rows)[:, None] & (columns < num_columns), other=0.0)
    if FP8:
        height = num_rows // PARTS
        blocks_down = tl.cdiv(height, SCALE_BLOCK)
        blocks_across = tl.cdiv(num_columns, SCALE_BLOCK)
        part = rows // height
        block = (expert * PARTS + part) * blocks_down + (rows - part * height) // SCALE_BLOCK
        place = scale_ptr + block.to(tl.int64) * blocks_across + column // SCALE_BLOCK
        scale = tl.load(place, mask=rows < num_rows, other=0.0)
        if numbers.dtype == tl.uint8:
            return (decode(numbers).to(tl.float32) * (scale * 256.0)[:, None]).to(DTYPE)
        else:
            return (numbers.to(tl.float32) * scale[:, None]).to(DTYPE)
    else:
        return numbers.to(DTYPE)
