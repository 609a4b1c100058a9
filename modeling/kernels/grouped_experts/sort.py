"""Rows sorted by expert, and the tiles of the products over them, without the host ever knowing how many there are.

A counting sort: each program counts its chunk of the choices, the counts are summed up along the chunks, and then every
row knows its place. Equal experts keep their order, so that the result is the reference's.
"""

# T tokens, K experts a token, S = T*K rows, E experts, P chunks

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launch import device_of
from .launching import Launch, run

CHUNK = 128
# Experts, and tiles, that a program looks at together.
EXPERTS_AT_ONCE = 16
CHUNKS_AT_ONCE = 64
TILES_AT_ONCE = 32
META = torch.device("meta")


@triton.jit
def count_kernel(indices_ptr, partial_ptr, num_rows, num_experts, CHUNK: tl.constexpr, EXPERTS: tl.constexpr):
    """Count how many rows of a chunk go to each expert."""
    row = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(indices_ptr + row, mask=row < num_rows, other=0).to(tl.int32)
    bins = tl.arange(0, EXPERTS)
    counts = tl.histogram(expert, EXPERTS, mask=row < num_rows)
    tl.store(partial_ptr + tl.program_id(0) * num_experts + bins, counts, mask=bins < num_experts)


@triton.jit
def scan_kernel(partial_ptr, counts_ptr, num_chunks, num_experts, CHUNKS: tl.constexpr, EXPERTS: tl.constexpr):
    """Turn the counts of each chunk into those of all chunks before it, and store the sum over all."""
    expert = (tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS))[None, :]
    total = tl.zeros((1, EXPERTS), tl.int32)
    for start in range(0, num_chunks, CHUNKS):
        chunk = (start + tl.arange(0, CHUNKS))[:, None]
        place = partial_ptr + chunk * num_experts + expert
        mask = (chunk < num_chunks) & (expert < num_experts)
        counts = tl.load(place, mask=mask, other=0)
        tl.store(place, total + tl.cumsum(counts, axis=0) - counts, mask=mask)
        total += tl.sum(counts, axis=0, keep_dims=True)
    tl.store(counts_ptr + expert, total.to(tl.int64), mask=expert < num_experts)


@triton.jit
def tile_kernel(
    counts_ptr,
    ends_ptr,
    tiles_ptr,
    used_ptr,
    num_tiles,
    num_experts,
    BLOCK_ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write an expert's last row and its tiles: (expert, first row). That of the last one writes how many there are."""
    expert = tl.program_id(0)
    each = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + each, mask=each < num_experts, other=0).to(tl.int32)
    tiles = (counts + BLOCK_ROWS - 1) // BLOCK_ROWS
    row = tl.sum(tl.where(each < expert, counts, 0), axis=0)
    first = tl.sum(tl.where(each < expert, tiles, 0), axis=0)
    last = first + tl.sum(tl.where(each == expert, tiles, 0), axis=0)
    tl.store(ends_ptr + expert, row + tl.sum(tl.where(each == expert, counts, 0), axis=0))
    tl.store(used_ptr, last, mask=expert == num_experts - 1)
    for start in range(first, last, TILES):
        tile = start + tl.arange(0, TILES)
        tl.store(tiles_ptr + tile, tl.zeros_like(tile) + expert, mask=tile < last)
        tl.store(tiles_ptr + num_tiles + tile, row + (tile - first) * BLOCK_ROWS, mask=tile < last)


@triton.jit
def place_kernel(indices_ptr, partial_ptr, counts_ptr, ends_ptr, rows_ptr, num_rows, num_experts, CHUNK: tl.constexpr):
    """Write each row of a chunk to its place: behind the experts before its own, and its expert's rows before it."""
    start = tl.program_id(0) * CHUNK
    place = tl.arange(0, CHUNK)
    inside = start + place < num_rows
    expert = tl.load(indices_ptr + start + place, mask=inside, other=-1).to(tl.int32)
    before = (expert[:, None] == expert[None, :]) & (place[:, None] > place[None, :])
    position = tl.sum(before.to(tl.int32), axis=1)
    position += tl.load(ends_ptr + expert, mask=inside, other=0)
    position -= tl.load(counts_ptr + expert, mask=inside, other=0).to(tl.int32)
    position += tl.load(partial_ptr + tl.program_id(0) * num_experts + expert, mask=inside, other=0)
    tl.store(rows_ptr + position, (start + place).to(tl.int64), mask=inside)


class Tiles(NamedTuple):
    """Where the products find their rows.

    Attributes:
        tiles: expert and first row of each tile, int32 (2, as many as there can be).
        used: how many tiles there are, int32 (1,).
        ends: the last row of each expert, excluded, int32 (E,).
        block_rows: rows of a tile.
    """

    tiles: torch.Tensor
    used: torch.Tensor
    ends: torch.Tensor
    block_rows: int


def most_tiles(num_rows: int, num_experts: int, block_rows: int) -> int:
    """Return how many tiles there can be: every expert may have one that is not full."""
    return min(num_rows, num_rows // block_rows + num_experts)


def _tile(counts: torch.Tensor, tiles: Tiles) -> Launch:
    arguments = {
        "counts_ptr": counts,
        "ends_ptr": tiles.ends,
        "tiles_ptr": tiles.tiles,
        "used_ptr": tiles.used,
        "num_tiles": tiles.tiles.shape[1],
        "num_experts": counts.numel(),
        "BLOCK_ROWS": tiles.block_rows,
        "EXPERTS": triton.next_power_of_2(counts.numel()),
        "TILES": TILES_AT_ONCE,
    }
    return Launch(tile_kernel, counts.numel(), arguments)


def unfilled_tiles(num_rows: int, num_experts: int, block_rows: int, device: torch.device) -> Tiles:
    """Return memory for the tiles of so many rows."""
    shapes = (2, most_tiles(num_rows, num_experts, block_rows)), (1,), (num_experts,)
    tiles, used, ends = (torch.empty(shape, dtype=torch.int32, device=device) for shape in shapes)
    return Tiles(tiles, used, ends, block_rows)


def make_tiles(counts: torch.Tensor, num_rows: int, block_rows: int) -> Tiles:
    """Return the tiles of experts with these `counts` (E,), int64, which sum up to `num_rows`."""
    found = unfilled_tiles(num_rows, counts.numel(), block_rows, counts.device)
    with device_of(counts):
        run(_tile(counts, found))
    return found


def _sort(indices: torch.Tensor, partial: torch.Tensor, counts: torch.Tensor, rows: torch.Tensor, tiles: Tiles):
    """Return the launches that fill the last four, in their order."""
    num_chunks, num_experts = partial.shape
    sizes = {"num_rows": rows.numel(), "num_experts": num_experts, "CHUNK": CHUNK}
    chosen = {"indices_ptr": indices, "partial_ptr": partial}
    scanned = {"partial_ptr": partial, "counts_ptr": counts, "num_chunks": num_chunks, "num_experts": num_experts}
    scanned |= {"CHUNKS": CHUNKS_AT_ONCE, "EXPERTS": EXPERTS_AT_ONCE}
    placed = {**chosen, "counts_ptr": counts, "ends_ptr": tiles.ends, "rows_ptr": rows, **sizes}
    return (
        Launch(count_kernel, num_chunks, {**chosen, **sizes, "EXPERTS": triton.next_power_of_2(num_experts)}),
        Launch(scan_kernel, triton.cdiv(num_experts, EXPERTS_AT_ONCE), scanned),
        _tile(counts, tiles),
        Launch(place_kernel, num_chunks, placed),
    )


def sort_rows(indices: torch.Tensor, num_experts: int, block_rows: int) -> tuple[torch.Tensor, torch.Tensor, Tiles]:
    """Return the rows `token * K + k` sorted by expert, stable (S,), their counts (E,), both int64, and the tiles.

    `indices` (T, K) are in [0, E).
    """
    num_rows, device = indices.numel(), indices.device
    if not num_rows:
        counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
        return torch.empty(0, dtype=torch.int64, device=device), counts, make_tiles(counts, 0, block_rows)
    partial = torch.empty((triton.cdiv(num_rows, CHUNK), num_experts), dtype=torch.int32, device=device)
    counts, rows = (torch.empty(size, dtype=torch.int64, device=device) for size in (num_experts, num_rows))
    found = unfilled_tiles(num_rows, num_experts, block_rows, device)
    with device_of(indices):
        for launch in _sort(indices.contiguous(), partial, counts, rows, found):
            run(launch)
    return rows, counts, found


def examples() -> dict[str, Launch]:
    """Return the launches for 8 of DeepSeek-V3's 256 experts for each of 8192 tokens, without memory."""
    indices, counts = (torch.empty(size, dtype=torch.int64, device="meta") for size in (65536, 256))
    partial, tiles = torch.empty(512, 256, dtype=torch.int32, device="meta"), unfilled_tiles(65536, 256, 128, META)
    found = _sort(indices, partial, counts, torch.empty_like(indices), tiles)
    return dict(zip(("count", "scan", "tile", "place"), found, strict=True))
