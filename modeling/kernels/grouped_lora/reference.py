"""Routed SwiGLU experts whose frozen projections W have low-rank terms: W x + s B (A x), forward and backward.

W + s B A is never built, nor a gradient of W: beside the activations of `grouped_experts`, all tensors are as small as
the factors. Kept for backward are the input, the gate_up output, what A makes of the inputs, and the indices. As there,
a loop over the experts that were hit (loop.py), or `F.grouped_mm` on CUDA (here).
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width
# r rank, M and N blocks of 128 rows and columns of fp8 weights

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..grouped_experts.reference import activation, sort_rows, sum_by_token
from ..swiglu.reference import swiglu_backward

# `F.grouped_mm` takes rows of whole 16 bytes: eight numbers in bf16.
RANK_MULTIPLE = 8


class Projection(NamedTuple):
    """A frozen projection of all experts, and what is added to it.

    Attributes:
        weight: (E, out, in), any float dtype, or fp8 codes.
        weight_scale_inv: of fp8 codes: fp32 (E, M, N), or (E, P, M, N) where P matrices are stacked by rows.
        lora_a: A (E*r, in), the experts one after the other.
        lora_b: B (out, r*E), the expert index fastest.
        scaling: s, divided by the share of the input that is kept where some is dropped.
        keep: where not None, which numbers of A's input are not dropped, bool, one row for each row of the input.
    """

    weight: torch.Tensor
    weight_scale_inv: torch.Tensor | None
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float
    keep: torch.Tensor | None

    @property
    def rank(self) -> int:
        """The rank r of each expert's factors."""
        return self.lora_a.shape[0] // self.weight.shape[0]

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (E, r, in) and B transposed (E, r, out), a view with dense rows, in `dtype`."""
        experts, out_features, in_features = self.weight.shape
        # Transposing all of B once is a copy of dense rows; taking B expert by expert would read single numbers.
        b_t = self.lora_b.to(dtype).t().contiguous().view(-1, experts, out_features).transpose(0, 1)
        return self.lora_a.to(dtype).reshape(experts, -1, in_features), b_t

    def undo_factors(self, a: torch.Tensor, b_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of `lora_a` and `lora_b` from those of what `factors` returns."""
        grad_b = b_t.transpose(0, 1).flatten(0, 1).t()
        return a.flatten(0, 1).to(self.lora_a.dtype), grad_b.contiguous().to(self.lora_b.dtype)


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass; without gradients the first three have no rows.

    Attributes:
        hidden: the gate_up output (S, 2I).
        up_low: what A of gate_up makes of its input (S, r), fp32 or wider.
        down_low: likewise of down.
        rows: `token * K + k`, sorted by expert (S,).
        counts: the rows of each expert (E,).
    """

    hidden: torch.Tensor
    up_low: torch.Tensor
    down_low: torch.Tensor
    rows: torch.Tensor
    counts: torch.Tensor


def dropped(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Return `x` with zeros for what is not kept."""
    return x if keep is None else x * keep


def rows_of(keep: torch.Tensor | None, rows: torch.Tensor | slice) -> torch.Tensor | None:
    """Return these rows of `keep`, where it is one."""
    return None if keep is None else keep[rows]


def keep_if(tensors: list[torch.Tensor], rows: torch.Tensor, counts: torch.Tensor, save: bool) -> Kept:
    """Return (hidden, up_low, down_low) in `tensors` to keep if `save`, else with no rows."""
    # Copies of no rows, as a view would keep the whole.
    hidden, up_low, down_low = tensors if save else [tensor[:0].clone() for tensor in tensors]
    return Kept(hidden, up_low, down_low, rows, counts)


def _grouped_factors(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `projection.factors` as dense tensors, the rank filled up with zeros to what `F.grouped_mm` takes."""
    a, b_t = projection.factors(dtype)
    missing = -projection.rank % RANK_MULTIPLE
    return F.pad(a, (0, 0, 0, missing)).contiguous(), F.pad(b_t, (0, 0, 0, missing)).contiguous()


def _forward_rows(x, projection: Projection, factors, keep, ends) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (S, out) of all experts for their rows `x` (S, in), and what A makes of them (S, r)."""
    a, b_t = factors
    output = F.grouped_mm(x, projection.weight.transpose(-2, -1), offs=ends)
    low = F.grouped_mm(dropped(x, keep), a.transpose(-2, -1), offs=ends)
    return output.add_(F.grouped_mm(low, b_t, offs=ends), alpha=projection.scaling), low


def _backward_rows(grad, x, projection: Projection, factors, low, keep, ends, needs_factors: bool):
    """Return the gradients of the input (S, in), and of A and B where asked, else two empty tensors."""
    a, b_t = factors
    grad_low = F.grouped_mm(grad, b_t.transpose(-2, -1), offs=ends).mul_(projection.scaling)
    grad_x = F.grouped_mm(grad, projection.weight, offs=ends)
    grad_x.add_(dropped(F.grouped_mm(grad_low, a, offs=ends), keep))
    if not needs_factors:
        return grad_x, x.new_empty(0), x.new_empty(0)
    low = F.pad(low.to(grad.dtype), (0, a.shape[1] - projection.rank))
    grad_a = F.grouped_mm(grad_low.t(), dropped(x, keep), offs=ends)[:, : projection.rank]
    grad_b_t = F.grouped_mm(low.t(), grad, offs=ends)[:, : projection.rank]
    return grad_x, *projection.undo_factors(grad_a, grad_b_t * projection.scaling)


def forward_grouped(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return what `forward_loop` returns, by `F.grouped_mm` over all rows at once."""
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows][:, None]
    keep = rows_of(gate_up.keep, tokens)
    hidden, up_low = _forward_rows(x_TH[tokens], gate_up, _grouped_factors(gate_up, dtype), keep, ends)
    weighted = activation(hidden)[2].mul_(weights).to(dtype)
    by_row, down_low = _forward_rows(weighted, down, _grouped_factors(down, dtype), down.keep, ends)
    wide = torch.promote_types(dtype, torch.float32)
    lows = [low[:, : p.rank].to(wide).contiguous() for low, p in ((up_low, gate_up), (down_low, down))]
    return sum_by_token(by_row, rows, top_k), keep_if([hidden, *lows], rows, counts, save)


def backward_grouped(grad_TH, x_TH, weights_TK, gate_up: Projection, down: Projection, kept: Kept, needs_factors: bool):
    """Return what `backward_loop` returns, by `F.grouped_mm`."""
    hidden, up_low, down_low, rows, counts = kept
    top_k, dtype = weights_TK.shape[1], x_TH.dtype
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)[:, None]
    gate, up, active = activation(hidden)
    weighted, factors = (active * weights).to(dtype), _grouped_factors(down, dtype)
    grad = grad_TH[tokens].contiguous()
    grad_active, *down_grads = _backward_rows(grad, weighted, down, factors, down_low, down.keep, ends, needs_factors)
    grad_active = grad_active.to(wide)
    grad_rows = (grad_active * active).sum(-1)
    grad_hidden = torch.cat(swiglu_backward(grad_active.mul_(weights), gate, up), -1).to(dtype)
    keep, factors = rows_of(gate_up.keep, tokens), _grouped_factors(gate_up, dtype)
    by_row, *up_grads = _backward_rows(grad_hidden, x_TH[tokens], gate_up, factors, up_low, keep, ends, needs_factors)
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    return sum_by_token(by_row, rows, top_k), grad_weights, *up_grads, *down_grads
