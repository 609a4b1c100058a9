"""The weights of all experts, with or without what is added to them, and how a kernel is told of them."""

# E experts, r rank

from typing import Any, NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tiling
from .tiling import Tiling


class Factors(NamedTuple):
    """What is added to a weight: s B A.

    Attributes:
        a: A (E, r, in), dense.
        b_t: B transposed (E, r, out), dense.
        scaling: s.
        keep: where not None, which numbers of A's input are not dropped, bool.
    """

    a: torch.Tensor
    b_t: torch.Tensor
    scaling: float
    keep: torch.Tensor | None = None


class Matrices(NamedTuple):
    """The weights of all experts.

    Attributes:
        weight: (E, out, in), any strides.
        scale: of fp8 codes: fp32 (E, M, N), or (E, P, M, N) where P matrices are stacked by rows.
        factors: what is added.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None
    factors: Factors | None = None


def chosen_tiling(kind: str, dtype: torch.dtype, rows: int, capability: int, matrices: Matrices) -> Tiling:
    """Return the tiling of the kernel "gate_up", "rows" or "activation" for tokens of this dtype and these weights."""
    rank = 0 if matrices.factors is None else matrices.factors.a.shape[1]
    return tiling.of_rows(kind, dtype, rows, capability, matrices.weight.dtype, rank)


def fits_tma(tensor: torch.Tensor, capability: int) -> bool:
    """Return whether tiles of this tensor can be copied by the tensor memory accelerator."""
    return (
        capability >= 90
        and tensor.numel() > 0
        and tensor.stride(-1) == 1
        and all(stride > 0 and stride * tensor.itemsize % 16 == 0 for stride in tensor.stride()[:-1])
        and tensor.data_ptr() % 16 == 0
    )


def descriptor(tensor: torch.Tensor, *block: int) -> TensorDescriptor:
    """Return the descriptor by which blocks of this shape are copied."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def weight_arguments(matrices: Matrices, chosen: Tiling, over_out: bool, capability: int) -> dict[str, Any]:
    """Return the arguments that tell a kernel about its weights."""
    weight = matrices.weight
    fp8 = matrices.scale is not None
    if fp8 and capability < 90:
        # No cast from fp8 in sm_80: the bits are decoded.
        weight = weight.view(torch.uint8)
    tma = fits_tma(weight, capability)
    block = (chosen.block_k, chosen.block_n) if over_out else (chosen.block_n, chosen.block_k)
    strides: dict[str, int] = dict(zip(("stride_expert", "stride_out", "stride_in"), weight.stride(), strict=True))
    return {
        "weight": descriptor(weight, 1, *block) if tma else weight,
        "scale_ptr": None if matrices.scale is None else matrices.scale.contiguous(),
        **(dict.fromkeys(strides, 1) if tma else strides),
        "TMA": tma,
    }


def low_rank_arguments(matrices: Matrices, over_out: bool) -> dict[str, Any]:
    """Return the arguments that tell a kernel about low-rank factors, if there are any."""
    factors = matrices.factors
    if factors is None:
        nothing = dict.fromkeys(("left_ptr", "right_ptr", "keep_ptr"))
        return {**nothing, "scaling": 1.0, "RANK": 0, "BLOCK_RANK": 16, "DROP": False}
    left, right = (factors.b_t, factors.a) if over_out else (factors.a, factors.b_t)
    rank = factors.a.shape[1]
    return {
        "left_ptr": left,
        "right_ptr": right,
        "keep_ptr": None if factors.keep is None else factors.keep.view(torch.uint8),
        "scaling": float(factors.scaling),
        "RANK": rank,
        "BLOCK_RANK": max(16, triton.next_power_of_2(rank)),
        "DROP": factors.keep is not None,
    }
