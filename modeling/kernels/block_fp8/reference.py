"""Block-scaled float8 (e4m3) in pure torch: the specification and the CPU path.

A weight (R, C) is stored as float8_e4m3fn codes (R, C) and fp32 scales (ceil(R/128), ceil(C/128)), called
`weight_scale_inv` in the published DeepSeek-V3 checkpoints; its value is `code * scale`, block by block. R and C need
not be multiples of the block: block i covers rows 128 i to min(128 (i + 1), R).
"""

# R rows, C columns, M block rows (ceil(R / 128)), N block columns (ceil(C / 128))

import torch
from torch.nn import functional as F

BLOCK = (128, 128)
# Of activations, as in the published models' inference: a scale for every 128 columns of each token.
ROW_BLOCK = (1, 128)
E4M3_MAX = 448.0
# A block of zeros gets scale 1, as 0 / 448 would make its codes 0 / 0; a smaller normal scale than this has no inverse.
SMALLEST_SCALE = 2.0**-126
# What is quantised at a time, in fp32: much at once, as each operation wakes all threads, but no second weight.
CHUNK_BYTES = 8 << 20


def scale_shape(rows: int, columns: int, block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    """Return the shape (M, N) of the scales of a weight (rows, columns)."""
    return -(-rows // block[0]), -(-columns // block[1])


def dequantize(
    codes: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    block: tuple[int, int] = BLOCK,
) -> torch.Tensor:
    """Return `code * scale` (R, C), computed in fp32 and rounded once.

    Args:
        codes: float8_e4m3fn (R, C).
        scale: fp32 (M, N).
        dtype: of the result; not looked at when `out` is given.
        out: where to write (R, C), any float dtype and strides.
        block: rows and columns that share a scale.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_shapes(codes, scale, block)
    if out is None:
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    # Row block by row block: the fp32 temporary stays within a cache, whatever the size of the weight.
    decode = _decode_bits if codes.device.type == "cpu" and not _has_nan(codes) else _decode_cast
    for start in range(0, codes.shape[0], block[0]):
        rows = slice(start, start + block[0])
        scale_C = _to_columns(scale[start // block[0]], codes.shape[1], block)
        out[rows].copy_(decode(codes[rows], scale_C))
    return out


def dequantize_stacked(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight (R, C) in `dtype` that P matrices of equal size make, stacked by rows, each with its blocks.

    `scale` is (P, M, N), or (M, N) for a single matrix.
    """
    if scale.dim() == 2:
        return dequantize(codes, scale, dtype)
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    parts = (codes.chunk(len(scale)), scale, weight.chunk(len(scale)))
    for part, part_scale, out in zip(*parts, strict=True):
        dequantize(part, part_scale, out=out)
    return weight


def quantize(
    weight: torch.Tensor, power_of_two: bool = False, block: tuple[int, int] = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (R, C) and scales (M, N) of `weight` (R, C), with scale = largest magnitude of the block / 448.

    Args:
        weight: any float dtype; rounded once, to nearest even.
        power_of_two: round scales up to a power of two (`scale_fmt: ue8m0` of DeepSeek-V3.1).
        block: rows and columns that share a scale.

    Raises:
        ValueError: `weight` holds an infinity or a NaN, which the format cannot scale.
    """
    return requantize(weight, None, power_of_two, block)


def quantize_activations(x: torch.Tensor, power_of_two: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (T, C) of `x` (T, C) and scales (T, ceil(C / 128)), one for every 128 columns of each row.

    Nothing is checked: NaN becomes the code of NaN, and an infinity makes its 128 columns NaN.
    """
    wide = _in_blocks(x.to(torch.float32), ROW_BLOCK)
    scale_TN = _scales(wide.abs().amax((1, 3)), power_of_two)
    return _out_of_blocks(_encode(wide, scale_TN[:, None, :, None]), x.shape), scale_TN


def requantize(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    power_of_two: bool = False,
    block: tuple[int, int] = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (R, C) and scales (M, N), as they were for every block that is what they dequantised to.

    A block whose values equal, in the dtype of `weight`, what its codes under the old scale stand for, keeps that
    scale, and with it its codes bit by bit. All other blocks get a scale of their own, as in `quantize`.

    Args:
        weight: (R, C), once dequantised from `scale` and since then perhaps trained.
        scale: the scales (M, N) it was dequantised with, or None.
        power_of_two: round new scales up to a power of two.
        block: rows and columns that share a scale.

    Raises:
        ValueError: the shapes do not fit, or `weight` holds an infinity or a NaN.
    """
    if scale is not None:
        check_shapes(weight, scale, block)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    shape = scale_shape(weight.shape[0], weight.shape[1], block)
    scales = torch.empty(shape, dtype=torch.float32, device=weight.device)
    step = max(1, CHUNK_BYTES // (4 * block[0] * max(1, weight.shape[1])))
    for index in range(0, shape[0], step):
        rows, blocks = slice(index * block[0], (index + step) * block[0]), slice(index, index + step)
        old = None if scale is None else scale[blocks].to(weight.device)
        codes[rows], scales[blocks] = _requantize_rows(weight[rows], old, power_of_two, block)
    return codes, scales


def _requantize_rows(
    weight: torch.Tensor, old_MN: torch.Tensor | None, power_of_two: bool, block: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = _in_blocks(weight.to(torch.float32), block)
    same_MN = None
    if old_MN is not None:
        scale = old_MN[:, None, :, None]
        codes = _encode(wide, scale)
        # A NaN does not come back as one, so its block counts as changed and is refused below.
        back = _decode_bits(codes, scale).to(weight.dtype).to(torch.float32)
        same_MN = (back == wide).all(dim=3).all(dim=1)
        if bool(same_MN.all()):
            return _out_of_blocks(codes, weight.shape), old_MN
    largest_MN = wide.abs().amax((1, 3))
    check_finite(largest_MN)
    scale_MN = _scales(largest_MN, power_of_two)
    if old_MN is not None and same_MN is not None:
        scale_MN = torch.where(same_MN, old_MN, scale_MN)
    return _out_of_blocks(_encode(wide, scale_MN[:, None, :, None]), weight.shape), scale_MN


def _scales(largest: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    scale = torch.where(largest == 0, 1.0, (largest / E4M3_MAX).clamp(min=SMALLEST_SCALE))
    if power_of_two:
        # On the bits: the logarithm of what is little above a power of two is rounded to that power's.
        scale = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return scale


def _encode(wide: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # The cast alone turns what lies above 448 into NaN.
    return (wide / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _decode_cast(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.float32).mul_(scale)


def _decode_bits(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # torch's cast from float8 is scalar on CPU, 7 times slower. A code s eeee mmm, moved to s 0eeee mmm0000000, is the
    # float16 of 1/256 of its value, subnormals included; only the NaN codes 0x7f and 0xff are not.
    half = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return half.view(torch.float16) * (scale * 256.0)


def _has_nan(codes: torch.Tensor) -> bool:
    return codes.numel() > 0 and int(codes.view(torch.uint8).bitwise_and(0x7F).max()) == 0x7F


def _to_columns(scale_N: torch.Tensor, columns: int, block: tuple[int, int]) -> torch.Tensor:
    return scale_N.to(torch.float32).repeat_interleave(block[1])[:columns]


def _in_blocks(rows: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return `rows` (R, C) as (M, 128, N, 128), the last blocks filled up with zeros."""
    missing = [-size % length for size, length in zip(rows.shape, block, strict=True)]
    # Padding copies, also by nothing.
    padded = F.pad(rows, (0, missing[1], 0, missing[0])) if any(missing) else rows
    return padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))


def _out_of_blocks(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return blocks.flatten(2, 3).flatten(0, 1)[: shape[0], : shape[1]]


def check_finite(numbers: torch.Tensor) -> None:
    """Raise ValueError where `numbers`, the largest of each block or their scales, say that one cannot be stored."""
    if not bool(numbers.isfinite().all()):
        raise ValueError("an infinity or a NaN cannot be stored in float8")


def check_shapes(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = BLOCK) -> None:
    """Raise ValueError where `scale` is not one for each block of `weight`."""
    expected = scale_shape(weight.shape[0], weight.shape[1], block) if weight.dim() == 2 else None
    if expected is None or tuple(scale.shape) != expected:
        raise ValueError(
            f"scales of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}; "
            f"allowed: {expected or 'a 2-D weight only'}, one per block of {block[0]} x {block[1]}"
        )
