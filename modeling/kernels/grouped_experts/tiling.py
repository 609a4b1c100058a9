"""Which tiles each kernel takes: a function of dtype, rows an expert and chip, as no driver is there to try them.

Not yet run on a GPU: they are those that compile without spills for all three chips, in the shapes that others found
best for products of this kind (128 rows, 256 columns, 64 summed over, eight warps).
"""

from typing import NamedTuple

import torch

# From here on factors crowd out rows and weights; found by compiling ranks of 16, 32 and 64.
CROWDED_RANK = 32


class Tiling(NamedTuple):
    """Rows and columns of a tile, how much is summed over at a time, warps, stages; tiles of rows in a group.

    With `persistent` there is a program for each multiprocessor, which takes tile after tile, else one for each tile.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8
    persistent: bool = False


def block_rows(dtype: torch.dtype, num_rows: int, num_experts: int) -> int:
    """Return the rows of a tile: those a mean expert has, if they are few, as more would be empty."""
    mean = num_rows / num_experts
    if mean <= 16:
        return 16
    return 64 if mean <= 64 or dtype == torch.float32 else 128


def of_rows(
    kind: str, dtype: torch.dtype, rows: int, capability: int, stored: torch.dtype | None = None, rank: int = 0
) -> Tiling:
    """Return the tiling of the kernel "gate_up", "rows" or "activation" with tiles of so many rows.

    gate_up holds two tiles of columns at once, gate's and up's. Weights are `stored` in a dtype of their own, and met
    by factors of a rank.
    """
    if dtype == torch.float32:
        return Tiling(rows, 32, 32, 4, 2)
    fp8, is_wide = stored == torch.float8_e4m3fn, stored == torch.float32
    # Without these, fp32 weights and factors of rank 64 take more shared memory than any chip has.
    crowded = is_wide or rank > CROWDED_RANK
    if rows == 16:
        return Tiling(rows, 32 if kind == "gate_up" else 64, 128, 4, 2 if crowded else 3)
    columns = (64 if kind == "gate_up" else 128) // (2 if rank > CROWDED_RANK else 1)
    if rows == 64:
        return Tiling(rows, columns, 64, 4, 2 if crowded else 3)
    # A row of an fp8 tile has one scale; and 256 columns leave no registers for decoding, nor for SwiGLU's gradient.
    if capability < 90:
        return Tiling(rows, columns, 32 if fp8 else 64, 8, 2 if is_wide else 3)
    if crowded:
        return Tiling(rows, 64 if kind == "gate_up" else 128, 64, 8, 3)
    # These fill a multiprocessor with one program. Of the others two fit there, but not with the registers that a loop
    # over tiles takes (benchmarks/LOG.md).
    persistent = kind == "gate_up" or (kind == "rows" and not fp8)
    columns, stages = 256 if kind == "rows" and not fp8 else 128, 3 if kind == "activation" else 4
    return Tiling(rows, columns, 64, 8, stages, persistent=persistent)


def over_rows(dtype: torch.dtype, size_a: int, size_b: int) -> Tiling:
    """Return the tiling of a sum over rows of products of `size_a` by `size_b` numbers."""
    if dtype == torch.float32:
        return Tiling(64, 16 if size_b <= 16 else 64, 32, 4, 2)
    if size_b <= 64:
        return Tiling(128, max(16, 1 << (size_b - 1).bit_length()), 64, 4, 3)
    return Tiling(128, 256, 64, 8, 3)
