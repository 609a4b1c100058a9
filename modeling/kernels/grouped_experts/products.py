"""The launches of the products over sorted rows, for experts with and without low-rank terms."""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, r rank

from typing import Any, NamedTuple

import torch
import triton

from .. import launch
from . import backward, forward, tiling
from .launching import Launch
from .matrices import Matrices, chosen_tiling, descriptor, fits_tma, low_rank_arguments, weight_arguments
from .sort import Tiles
from .tiling import Tiling

SUMMED_AT_ONCE = 1024


class Sorted(NamedTuple):
    """Rows sorted by expert: `token * K + k` (S,), where the experts' tiles are, and K."""

    rows: torch.Tensor
    tiles: Tiles
    top_k: int


def chip(tensor: torch.Tensor) -> int:
    """Return the compute capability that tilings are chosen by, as in `sm_90`: 90."""
    return launch.capability(tensor)


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (rows, columns) with dense columns; a copy only where there is no other way."""
    return x if x.stride(-1) == 1 else x.contiguous()


def tile_arguments(order: Sorted, chosen: Tiling) -> dict[str, Any]:
    """Return the arguments that tell a kernel about its tiles."""
    return {
        "rows_ptr": order.rows,
        "tiles_ptr": order.tiles.tiles,
        "used_ptr": order.tiles.used,
        "ends_ptr": order.tiles.ends,
        "num_tiles": order.tiles.tiles.shape[1],
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_K": chosen.block_k,
        "GROUP": chosen.group,
        "PERSISTENT": chosen.persistent,
    }


def launch_over(kernel: Any, num_columns: int, chosen: Tiling, order: Sorted, arguments: dict[str, Any]) -> Launch:
    """Return the launch of a kernel that makes this many columns for every row."""
    most = order.tiles.tiles.shape[1] * triton.cdiv(num_columns, chosen.block_n)
    programs = min(most, launch.num_multiprocessors(order.rows)) if chosen.persistent else most
    return Launch(kernel, programs, {**arguments, **tile_arguments(order, chosen)}, chosen.num_warps, chosen.num_stages)


def even(*sizes: tuple[int, int]) -> bool:
    """Return whether each size is a multiple of its block."""
    return all(size % block == 0 for size, block in sizes)


def gate_up(
    x: torch.Tensor,
    matrices: Matrices,
    weights: torch.Tensor,
    order: Sorted,
    hidden: torch.Tensor,
    active: torch.Tensor,
    low: torch.Tensor | None,
    save: bool,
    capability: int,
) -> Launch:
    """Return the launch that fills `active` (S, I), and if `save` `hidden` (S, 2I) and `low` (S, r)."""
    num_in, width = matrices.weight.shape[2], active.shape[1]
    chosen = chosen_tiling("gate_up", x.dtype, order.tiles.block_rows, capability, matrices)
    arguments = {
        "x_ptr": x,
        "weights_ptr": weights,
        "hidden_ptr": hidden,
        "active_ptr": active,
        "low_ptr": low,
        "num_in": num_in,
        "width": width,
        "stride_x": x.stride(0),
        "PARTS": 1 if matrices.scale is None or matrices.scale.dim() == 3 else matrices.scale.shape[1],
        "EVEN": even((num_in, chosen.block_k), (width, chosen.block_n)),
        "SAVE": save,
        "TOP_K": order.top_k,
        "FP8": matrices.scale is not None,
        **weight_arguments(matrices, chosen, False, capability),
        **low_rank_arguments(matrices, False),
    }
    return launch_over(forward.gate_up_kernel, width, chosen, order, arguments)


def rows(
    source: torch.Tensor,
    matrices: Matrices,
    order: Sorted,
    out: torch.Tensor,
    low: torch.Tensor | None,
    over_out: bool,
    capability: int,
) -> Launch:
    """Return the launch that writes `source` (S, in) times W, or (S, out) back, to `out` (S, .) by `token * K + k`.

    With `low` (S, r) what the left factor makes of `source` is written, too.
    """
    _, num_out, num_in = matrices.weight.shape
    chosen = chosen_tiling("rows", source.dtype, order.tiles.block_rows, capability, matrices)
    source_tma = fits_tma(source, capability)
    summed, columns = (num_out, num_in) if over_out else (num_in, num_out)
    arguments = {
        "source": descriptor(source, chosen.block_m, chosen.block_k) if source_tma else source,
        "out_ptr": out,
        "low_ptr": low,
        "num_out": num_out,
        "num_in": num_in,
        "stride_source": source.stride(0),
        "PARTS": 1 if matrices.scale is None or matrices.scale.dim() == 3 else matrices.scale.shape[1],
        "OVER_OUT": over_out,
        "EVEN": even((summed, chosen.block_k), (columns, chosen.block_n)),
        "SOURCE_TMA": source_tma,
        "SAVE": low is not None,
        "TOP_K": order.top_k,
        "FP8": matrices.scale is not None,
        **weight_arguments(matrices, chosen, over_out, capability),
        **low_rank_arguments(matrices, over_out),
    }
    return launch_over(forward.rows_kernel, columns, chosen, order, arguments)


def activation_columns(dtype: torch.dtype, matrices: Matrices, order: Sorted, capability: int) -> int:
    """Return of how many columns each share of a routing weight's gradient is the sum."""
    return chosen_tiling("activation", dtype, order.tiles.block_rows, capability, matrices).block_n


def activation(
    grad: torch.Tensor,
    matrices: Matrices,
    weights: torch.Tensor,
    hidden: torch.Tensor,
    order: Sorted,
    grad_hidden: torch.Tensor,
    partial: torch.Tensor,
    active: torch.Tensor | None,
    low: torch.Tensor | None,
    capability: int,
) -> Launch:
    """Return the launch that fills the last four, `active` and `low` if they are there; `grad` is (T, H)."""
    _, num_out, width = matrices.weight.shape
    chosen = chosen_tiling("activation", grad.dtype, order.tiles.block_rows, capability, matrices)
    arguments = {
        "grad_ptr": grad,
        "weights_ptr": weights,
        "hidden_ptr": hidden,
        "grad_hidden_ptr": grad_hidden,
        "active_ptr": active,
        "partial_ptr": partial,
        "low_ptr": low,
        "num_out": num_out,
        "width": width,
        "stride_grad": grad.stride(0),
        "EVEN": even((num_out, chosen.block_k), (width, chosen.block_n)),
        "SAVE": active is not None,
        "TOP_K": order.top_k,
        "FP8": matrices.scale is not None,
        **weight_arguments(matrices, chosen, True, capability),
        **low_rank_arguments(matrices, True),
    }
    return launch_over(backward.activation_kernel, width, chosen, order, arguments)


def over_rows(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    order: Sorted,
    gather_a: bool = False,
    gather_b: bool = False,
    scaling: float = 1.0,
    keep: torch.Tensor | None = None,
) -> Launch:
    """Return the launch that fills `out` (E, a's columns, b's) with `scaling * a^T b` over each expert's rows.

    What is gathered has a row for each token (T, .), else for each sorted row (S, .); `keep` is of `a`.
    """
    _, size_a, size_b = out.shape
    chosen = tiling.over_rows(a.dtype, size_a, size_b)
    arguments = {
        "a_ptr": a,
        "b_ptr": b,
        "keep_ptr": None if keep is None else keep.view(torch.uint8),
        "rows_ptr": order.rows,
        "ends_ptr": order.tiles.ends,
        "out_ptr": out,
        "size_a": size_a,
        "size_b": size_b,
        "stride_a": a.stride(0),
        "stride_b": b.stride(0),
        **dict(zip(("stride_expert", "stride_out_a", "stride_out_b"), out.stride(), strict=True)),
        "scaling": float(scaling),
        "TOP_K": order.top_k,
        "GATHER_A": gather_a,
        "GATHER_B": gather_b,
        "DROP": keep is not None,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_K": chosen.block_k,
    }
    programs = out.shape[0] * triton.cdiv(size_a, chosen.block_m) * triton.cdiv(size_b, chosen.block_n)
    return Launch(backward.over_rows_kernel, programs, arguments, chosen.num_warps, chosen.num_stages)


def sum_by_token(by_row: torch.Tensor, out: torch.Tensor) -> Launch:
    """Return the launch that fills `out` (T, H) with the sums of each token's K rows of `by_row` (T*K, H)."""
    arguments = {
        "by_row_ptr": by_row,
        "out_ptr": out,
        "num_numbers": out.numel(),
        "num_columns": out.shape[1],
        "TOP_K": by_row.shape[0] // max(1, out.shape[0]),
        "BLOCK": SUMMED_AT_ONCE,
    }
    return Launch(forward.sum_kernel, triton.cdiv(out.numel(), SUMMED_AT_ONCE), arguments)
