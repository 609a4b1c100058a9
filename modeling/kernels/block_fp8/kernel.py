"""Block-scaled float8 in Triton: weights and activations to codes and scales, and back, bit by bit as the reference.

Codes are read and written as bytes. GPUs before sm_89 have no float8, and convert by shifts.
"""

# R rows, C columns

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launch import Configuration, capability, device_of
from .reference import BLOCK, E4M3_MAX, SMALLEST_SCALE, scale_shape

# The first GPUs that convert to and from e4m3.
FIRST_NATIVE = 89
# Rows of an activation that a program quantises.
ACTIVATION_ROWS = 32
LARGEST_CODE = tl.constexpr(E4M3_MAX)
LEAST_SCALE = tl.constexpr(SMALLEST_SCALE)


@triton.jit
def decode(codes, NATIVE: tl.constexpr):
    """Return the fp32 values of e4m3 `codes`, given as bytes."""
    if NATIVE:
        values = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        # A code s eeee mmm, moved to s 0eeee mmm0000000, is the float16 of 1/256 of its value, subnormals included.
        half = ((codes.to(tl.int16) << 7) & 0x3F80) | ((codes.to(tl.int16) << 8) & -0x8000)
        values = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        values = tl.where((codes & 0x7F) == 0x7F, float("nan"), values)
    return values


@triton.jit
def encode(values, NATIVE: tl.constexpr):
    """Return as bytes the e4m3 codes of fp32 `values` in [-448, 448], to nearest even; NaN stays NaN."""
    if NATIVE:
        codes = values.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = values.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        # Normal: round the mantissa to 3 bits, a carry moving on to the exponent, whose bias is 7 in place of 127.
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        # Subnormal, below 2^-6: multiples of 2^-9, which is what fp32 rounds to at 2^14.
        small = (tl.abs(values) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(magnitude < 0x3C800000, small, normal)
        code = tl.where(magnitude > 0x7F800000, 0x7F, code)
        codes = (code | ((bits >> 24) & 0x80)).to(tl.uint8)
    return codes


@triton.jit
def _power_of_two(scale):
    """Return the least power of two that is not below the normal number `scale`."""
    bits = scale.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _scale_of(largest, POWER_OF_TWO: tl.constexpr):
    # Also where the largest is NaN, its scale is NaN.
    scale = tl.div_rn(largest, tl.full(largest.shape, LARGEST_CODE, tl.float32))
    scale = tl.where(scale < LEAST_SCALE, LEAST_SCALE, scale)
    scale = tl.where(largest == 0, 1.0, scale)
    if POWER_OF_TWO:
        scale = _power_of_two(scale)
    return scale


@triton.jit
def _codes_of(values, scale, NATIVE: tl.constexpr):
    scaled = tl.div_rn(values, tl.broadcast_to(scale, values.shape))
    # A division may round up to more than the largest code; NaN stays.
    scaled = tl.where(scaled > LARGEST_CODE, LARGEST_CODE, scaled)
    return encode(tl.where(scaled < -LARGEST_CODE, -LARGEST_CODE, scaled), NATIVE)


@triton.jit
def quantized(values, BY_ROW: tl.constexpr, POWER_OF_TWO: tl.constexpr, NATIVE: tl.constexpr):
    """Return the scale of each row of `values`, (ROWS, 1), or of all, (1, 1), and their codes as bytes."""
    # As integers NaN is above infinity, and infinity above all else: neither is lost on the way to the scale.
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(bits, axis=1, keep_dims=True)
    if not BY_ROW:
        largest = tl.max(largest, axis=0, keep_dims=True)
    scale = _scale_of(largest.to(tl.float32, bitcast=True), POWER_OF_TWO)
    return scale, _codes_of(values, scale, NATIVE)


@triton.jit
def quantize_kernel(
    values_ptr,
    codes_ptr,
    scale_ptr,
    num_rows,
    num_columns,
    stride_row,
    stride_column,
    stride_scale_row,
    stride_scale_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BY_ROW: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Quantise ROWS x COLUMNS numbers, with a scale for each row of them, or with one for all."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < num_rows) & (column < num_columns)
    values = tl.load(values_ptr + row * stride_row + column * stride_column, mask=mask, other=0.0).to(tl.float32)
    scale, codes = quantized(values, BY_ROW, POWER_OF_TWO, NATIVE)
    scale_row = row if BY_ROW else tl.program_id(0).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    scale_ptrs = scale_ptr + scale_row * stride_scale_row + tl.program_id(1) * stride_scale_column
    if BY_ROW:
        tl.store(scale_ptrs, scale, mask=row < num_rows)
    else:
        tl.store(scale_ptrs, scale)
    tl.store(codes_ptr + row * num_columns + column, codes, mask=mask)


@triton.jit
def dequantize_kernel(
    codes_ptr,
    scale_ptr,
    out_ptr,
    num_rows,
    num_columns,
    stride_row,
    stride_column,
    stride_scale_row,
    stride_out_row,
    stride_out_column,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Write ROWS rows, which divide BLOCK_ROWS, of a block of COLUMNS columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < num_rows) & (column < num_columns)
    scale_row = tl.program_id(0).to(tl.int64) * ROWS // BLOCK_ROWS
    scale = tl.load(scale_ptr + scale_row * stride_scale_row + tl.program_id(1))
    codes = tl.load(codes_ptr + row * stride_row + column * stride_column, mask=mask, other=0)
    tl.store(out_ptr + row * stride_out_row + column * stride_out_column, decode(codes, NATIVE) * scale, mask=mask)


FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def is_native(tensor: torch.Tensor) -> bool:
    """Return whether the device of `tensor` converts float8 itself."""
    return capability(tensor) >= FIRST_NATIVE


class Tile(NamedTuple):
    """What a program of the quantisation takes."""

    rows: int
    by_row: bool
    num_warps: int


WEIGHT = Tile(BLOCK[0], by_row=False, num_warps=8)
ACTIVATION = Tile(ACTIVATION_ROWS, by_row=True, num_warps=4)


def _quantize(values: torch.Tensor, scale: torch.Tensor, tile: Tile, power_of_two: bool, native: bool) -> torch.Tensor:
    rows, columns = values.shape
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=values.device)
    with device_of(values):
        quantize_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, BLOCK[1]))](
            values,
            codes,
            scale,
            rows,
            columns,
            *values.stride(),
            *scale.stride(),
            ROWS=tile.rows,
            COLUMNS=BLOCK[1],
            BY_ROW=tile.by_row,
            POWER_OF_TWO=power_of_two,
            NATIVE=native,
            num_warps=tile.num_warps,
        )
    return codes.view(torch.float8_e4m3fn)


def quantize(
    weight: torch.Tensor, power_of_two: bool = False, native: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (R, C) and scales (M, N) of `weight` (R, C), as the reference; an infinity gives a scale of it.

    `native` is whether the device converts float8 itself, by default what is known of it.
    """
    scale = torch.empty(scale_shape(weight.shape[0], weight.shape[1]), dtype=torch.float32, device=weight.device)
    native = is_native(weight) if native is None else native
    return _quantize(weight, scale, WEIGHT, power_of_two, native), scale


def quantize_activations(
    x: torch.Tensor, power_of_two: bool = False, native: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (T, C) and scales (T, N), a scale for every 128 columns of a row, stored by columns."""
    # Column by column, as a product reads them: neighbouring tokens' scales at the same columns.
    scale = torch.empty((triton.cdiv(x.shape[1], BLOCK[1]), x.shape[0]), dtype=torch.float32, device=x.device).t()
    native = is_native(x) if native is None else native
    return _quantize(x, scale, ACTIVATION, power_of_two, native), scale


def dequantize(codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, native: bool | None = None) -> torch.Tensor:
    """Return `out` after `code * scale` (R, C) is written to it, any strides; `native` is as in `quantize`."""
    native = is_native(codes) if native is None else native
    scale = scale if scale.stride(1) == 1 or scale.shape[1] == 1 else scale.contiguous()
    rows, columns = codes.shape
    with device_of(codes):
        dequantize_kernel[(triton.cdiv(rows, 32), triton.cdiv(columns, BLOCK[1]))](
            codes.view(torch.uint8),
            scale,
            out,
            rows,
            columns,
            *codes.stride(),
            scale.stride(0),
            *out.stride(),
            ROWS=32,
            BLOCK_ROWS=BLOCK[0],
            COLUMNS=BLOCK[1],
            NATIVE=native,
            num_warps=4,
        )
    return out


def configurations() -> list[Configuration]:
    """Return the kernels for bf16 weights and activations, whose numbers do not depend on their sizes."""
    found = []
    rows = {"num_rows": "i32", "num_columns": "i32", "stride_row": "i32"}
    scales = dict.fromkeys(["stride_scale_row", "stride_scale_column"], "i32")
    for native, capabilities in ((True, (90, 100)), (False, (80,))):
        how = "native" if native else "shifts"
        for name, tile in (("weight", WEIGHT), ("activations", ACTIVATION)):
            # A stride of one is a constant at launches.
            ones = {"stride_column": 1, "stride_scale_row" if tile.by_row else "stride_scale_column": 1}
            signature = {"values_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": "*fp32", **rows, **scales}
            found.append(
                Configuration(
                    f"quantize_{name}_{how}",
                    quantize_kernel,
                    {key: kind for key, kind in signature.items() if key not in ones},
                    {
                        **ones,
                        "ROWS": tile.rows,
                        "COLUMNS": BLOCK[1],
                        "BY_ROW": tile.by_row,
                        "POWER_OF_TWO": False,
                        "NATIVE": native,
                    },
                    num_warps=tile.num_warps,
                    aligned=("num_columns", "stride_row"),
                    capabilities=capabilities,
                )
            )
        pointers = {"codes_ptr": "*u8", "scale_ptr": "*fp32", "out_ptr": "*bf16"}
        sizes = {"ROWS": 32, "BLOCK_ROWS": BLOCK[0], "COLUMNS": BLOCK[1], "NATIVE": native}
        found.append(
            Configuration(
                f"dequantize_{how}",
                dequantize_kernel,
                {**pointers, **rows, "stride_scale_row": "i32", "stride_out_row": "i32"},
                {**sizes, "stride_column": 1, "stride_out_column": 1},
                aligned=("num_columns", "stride_row", "stride_out_row"),
                capabilities=capabilities,
            )
        )
    return found
