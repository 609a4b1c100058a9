"""Routed SwiGLU experts whose frozen projections W have low-rank terms: W x + s B (A x), forward and backward.

W + s B A is never built, nor a gradient of W: beside the activations of `grouped_experts`, all tensors are as small as
the factors. Kept for backward are the input, the gate_up output, what A makes of the inputs, and the indices. As there,
a loop over the experts that were hit, or `F.grouped_mm` on CUDA.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, n rows of one expert, E experts, H hidden, I expert width
# r rank, M and N blocks of 128 rows and columns of fp8 weights

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..block_fp8.reference import dequantize_stacked
from ..grouped_experts.reference import activation, sort_rows, sum_by_token
from ..linear.reference import matmul
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

    def experts(self, a: torch.Tensor, b_t: torch.Tensor) -> "list[_OneExpert]":
        """Return the projection of each expert, with what `factors` returns."""
        scales = _split(self.weight_scale_inv, [1] * len(self.weight))
        parts = zip(self.weight.unbind(0), scales, a.unbind(0), b_t.unbind(0), strict=True)
        return [_OneExpert(weight, scale, a, b_t, self.scaling) for weight, scale, a, b_t in parts]


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


class _OneExpert(NamedTuple):
    """W (out, in) with its scales if it is fp8, A (r, in) and B transposed (r, out) in fp32 or wider, and s.

    The products with A and B are in their dtype: so small in bf16 they take several times as long on a CPU, and in a
    half-precision model PEFT has the factors in fp32 anyway.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    a: torch.Tensor
    b_t: torch.Tensor
    scaling: float

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return W in `dtype`."""
        if self.scale is None:
            return self.weight.to(dtype)
        return dequantize_stacked(self.weight, self.scale[0], dtype)

    def forward(self, x: torch.Tensor, x_low: torch.Tensor, low: torch.Tensor, out: torch.Tensor) -> None:
        """Write `A x_low` (n, r) to `low` and the output (n, out) to `out`; `x_low` is `x`, but wide and dropped."""
        matmul(x, self.dense(x.dtype).t(), out=out)
        _add_product(out, torch.mm(x_low, self.a.t(), out=low), self.b_t, self.scaling)

    def backward(
        self, grad: torch.Tensor, grad_wide: torch.Tensor, keep: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the input (n, in), in `out` where given, else wide, and of `A x` (n, r).

        `grad` is that of the output (n, out), `grad_wide` the same in the dtype of the factors.
        """
        grad_low = (grad_wide @ self.b_t.t()).mul_(self.scaling)
        product = matmul(grad, self.dense(grad.dtype), out=out)
        out = product.to(grad_wide.dtype) if out is None else product
        if keep is None:
            _add_product(out, grad_low, self.a, 1.0)
        else:
            out.add_((grad_low @ self.a).mul_(keep))
        return out, grad_low

    def gradients(
        self,
        x_low: torch.Tensor,
        low: torch.Tensor,
        grad: torch.Tensor,
        grad_low: torch.Tensor,
        grad_a: torch.Tensor,
        grad_b_t: torch.Tensor,
    ) -> None:
        """Write the gradients of A and B transposed to `grad_a` and `grad_b_t`; all are wide."""
        torch.mm(grad_low.t(), x_low, out=grad_a)
        torch.addmm(grad_b_t, low.t(), grad, beta=0, alpha=self.scaling, out=grad_b_t)


def _add_product(out: torch.Tensor, low: torch.Tensor, factor: torch.Tensor, scaling: float) -> None:
    if out.dtype == low.dtype:
        out.addmm_(low, factor, alpha=scaling)
    else:
        out.add_(low @ factor, alpha=scaling)


def _dropped(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return x if keep is None else x * keep


def _rows_of(keep: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    return None if keep is None else keep[rows]


def _split(tensor: torch.Tensor | None, sizes: list[int]) -> Sequence[Any]:
    """Return the rows of each expert. Taking views one by one costs a tenth of a step with few rows."""
    return [None] * len(sizes) if tensor is None else tensor.split(sizes)


def forward_loop(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return the output (T, H) and what is kept if `save`, one expert after the other.

    `gate_up.keep` has T rows, one for each token, `down.keep` has S, sorted by expert.
    """
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    tokens = rows // top_k
    x, weights = x_TH.index_select(0, tokens), weights_TK.flatten().index_select(0, rows)[:, None]
    hidden, by_row = x.new_empty(x.shape[0], gate_up.weight.shape[1]), torch.empty_like(x)
    up_experts, down_experts = (projection.experts(*projection.factors(wide)) for projection in (gate_up, down))
    lows = [x.new_empty(x.shape[0], projection.rank, dtype=wide) for projection in (gate_up, down)]
    of_rows = (x, weights, hidden, *lows, by_row, _rows_of(gate_up.keep, tokens), down.keep)
    parts = zip(*(_split(tensor, counts.tolist()) for tensor in of_rows), up_experts, down_experts, strict=True)
    for x, weights, hidden_part, up_low, down_low, out, up_keep, down_keep, up, one in parts:
        if len(x):
            up.forward(x, _dropped(x.to(wide), up_keep), up_low, hidden_part)
            weighted = activation(hidden_part)[2].mul_(weights)
            one.forward(weighted.to(dtype), _dropped(weighted, down_keep), down_low, out)
    return sum_by_token(by_row, rows, top_k), _kept([hidden, *lows], rows, counts, save)


def _kept(tensors: list[torch.Tensor], rows: torch.Tensor, counts: torch.Tensor, save: bool) -> Kept:
    # Copies of no rows, as a view would keep the whole.
    hidden, up_low, down_low = tensors if save else [tensor[:0].clone() for tensor in tensors]
    return Kept(hidden, up_low, down_low, rows, counts)


def backward_loop(grad_TH, x_TH, weights_TK, gate_up: Projection, down: Projection, kept: Kept, needs_factors: bool):
    """Return the gradients of x (T, H), weights (T, K), and of A and B of gate_up and down; those empty unless asked.

    Experts without rows get zeros.
    """
    hidden, up_low, down_low, rows, counts = kept
    top_k, dtype = weights_TK.shape[1], x_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten().index_select(0, rows)[:, None]
    x, grad_rows = x_TH.index_select(0, tokens), grad_TH.index_select(0, tokens)
    by_row, grad_by_row = torch.empty_like(x), torch.empty(rows.numel(), dtype=wide, device=x.device)
    factors = [*gate_up.factors(wide), *down.factors(wide)]
    grads = [torch.zeros_like(t) if needs_factors else t.new_empty(0) for t in factors]
    of_rows = (x, weights, grad_rows, hidden, up_low, down_low, by_row, grad_by_row)
    kept_rows = (_rows_of(gate_up.keep, tokens), down.keep)
    parts = zip(*(_split(tensor, counts.tolist()) for tensor in (*of_rows, *kept_rows)), strict=True)
    experts = zip(gate_up.experts(*factors[:2]), down.experts(*factors[2:]), strict=True)
    for expert, (part, (up, one)) in enumerate(zip(parts, experts, strict=True)):
        x, weights, grad, hidden, up_low, down_low, out, grad_weights, up_keep, down_keep = part
        if not len(x):
            continue
        gate, up_part, active = activation(hidden)
        grad_wide = grad.to(wide)
        grad_active, grad_low = one.backward(grad, grad_wide, down_keep)
        if needs_factors:
            of_expert = [grad[expert] for grad in grads[2:]]
            one.gradients(_dropped(active * weights, down_keep), down_low, grad_wide, grad_low, *of_expert)
        # The weighted sum over I gives the weight's gradient and spares keeping the down projection's output.
        torch.sum(grad_active * active, -1, out=grad_weights)
        grad_wide = torch.cat(swiglu_backward(grad_active.mul_(weights), gate, up_part), -1)
        _, grad_low = up.backward(grad_wide.to(dtype), grad_wide, up_keep, out)
        if needs_factors:
            of_expert = [grad[expert] for grad in grads[:2]]
            up.gradients(_dropped(x.to(wide), up_keep), up_low, grad_wide, grad_low, *of_expert)
    grad_weights = torch.empty_like(grad_by_row)
    grad_weights[rows] = grad_by_row
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    if needs_factors:
        grads = [*gate_up.undo_factors(*grads[:2]), *down.undo_factors(*grads[2:])]
    return sum_by_token(by_row, rows, top_k), grad_weights, *grads


def _grouped_factors(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `projection.factors` as dense tensors, the rank filled up with zeros to what `F.grouped_mm` takes."""
    a, b_t = projection.factors(dtype)
    missing = -projection.rank % RANK_MULTIPLE
    return F.pad(a, (0, 0, 0, missing)).contiguous(), F.pad(b_t, (0, 0, 0, missing)).contiguous()


def _forward_rows(x, projection: Projection, factors, keep, ends) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (S, out) of all experts for their rows `x` (S, in), and what A makes of them (S, r)."""
    a, b_t = factors
    output = F.grouped_mm(x, projection.weight.transpose(-2, -1), offs=ends)
    low = F.grouped_mm(_dropped(x, keep), a.transpose(-2, -1), offs=ends)
    return output.add_(F.grouped_mm(low, b_t, offs=ends), alpha=projection.scaling), low


def _backward_rows(grad, x, projection: Projection, factors, low, keep, ends, needs_factors: bool):
    """Return the gradients of the input (S, in), and of A and B where asked, else two empty tensors."""
    a, b_t = factors
    grad_low = F.grouped_mm(grad, b_t.transpose(-2, -1), offs=ends).mul_(projection.scaling)
    grad_x = F.grouped_mm(grad, projection.weight, offs=ends)
    grad_x.add_(_dropped(F.grouped_mm(grad_low, a, offs=ends), keep))
    if not needs_factors:
        return grad_x, x.new_empty(0), x.new_empty(0)
    low = F.pad(low.to(grad.dtype), (0, a.shape[1] - projection.rank))
    grad_a = F.grouped_mm(grad_low.t(), _dropped(x, keep), offs=ends)[:, : projection.rank]
    grad_b_t = F.grouped_mm(low.t(), grad, offs=ends)[:, : projection.rank]
    return grad_x, *projection.undo_factors(grad_a, grad_b_t * projection.scaling)


def forward_grouped(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return what `forward_loop` returns, by `F.grouped_mm` over all rows at once."""
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows][:, None]
    keep = _rows_of(gate_up.keep, tokens)
    hidden, up_low = _forward_rows(x_TH[tokens], gate_up, _grouped_factors(gate_up, dtype), keep, ends)
    weighted = activation(hidden)[2].mul_(weights).to(dtype)
    by_row, down_low = _forward_rows(weighted, down, _grouped_factors(down, dtype), down.keep, ends)
    wide = torch.promote_types(dtype, torch.float32)
    lows = [low[:, : p.rank].to(wide).contiguous() for low, p in ((up_low, gate_up), (down_low, down))]
    return sum_by_token(by_row, rows, top_k), _kept([hidden, *lows], rows, counts, save)


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
    keep, factors = _rows_of(gate_up.keep, tokens), _grouped_factors(gate_up, dtype)
    by_row, *up_grads = _backward_rows(grad_hidden, x_TH[tokens], gate_up, factors, up_low, keep, ends, needs_factors)
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    return sum_by_token(by_row, rows, top_k), grad_weights, *up_grads, *down_grads
