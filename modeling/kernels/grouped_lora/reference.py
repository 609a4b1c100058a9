"""Routed SwiGLU experts whose frozen projections W have low-rank terms: W x + s B (A x), forward and backward.

W + s B A is never built, nor a gradient of W: beside the activations of `grouped_experts`, all tensors are as small as
the factors. Kept for backward are the input, the gate_up output and the indices; what has the width of the rank is
made again. As there, a loop over the experts that were hit, or `F.grouped_mm` on CUDA.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, n rows of one expert, E experts, H hidden, I expert width
# r rank, M and N blocks of 128 rows and columns of fp8 weights

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..block_fp8.reference import dequantize_stacked
from ..grouped_experts.reference import activation, hit_experts, sort_rows, sum_by_token
from ..linear.reference import matmul, matmul_over_rows
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

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (E, r, in) and B transposed (E, r, out), a view with dense rows, in `dtype`."""
        experts, out_features, in_features = self.weight.shape
        # Transposing all of B once is a copy of dense rows; taking B expert by expert would read single numbers.
        b_t = self.lora_b.to(dtype).t().contiguous().view(-1, experts, out_features).transpose(0, 1)
        return self.lora_a.to(dtype).reshape(experts, -1, in_features), b_t

    def undo_factors(self, a: torch.Tensor, b_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of `lora_a` and `lora_b` from those of what `factors` returns."""
        grad_b = b_t.transpose(0, 1).flatten(0, 1).t().contiguous()
        return a.flatten(0, 1).to(self.lora_a.dtype), grad_b.to(self.lora_b.dtype)

    def of_expert(self, expert: int, a: torch.Tensor, b_t: torch.Tensor, keep: torch.Tensor | None) -> "_OneExpert":
        """Return the projection of one expert, its weight in the dtype of the factors `a` and `b_t`."""
        weight = self.weight[expert]
        if self.weight_scale_inv is None:
            weight = weight.to(a.dtype)
        else:
            weight = dequantize_stacked(weight, self.weight_scale_inv[expert], a.dtype)
        return _OneExpert(weight, a[expert], b_t[expert], self.scaling, keep)


class _OneExpert(NamedTuple):
    """W (out, in), A (r, in), B transposed (r, out), s, and what of A's input is kept (n, in)."""

    weight: torch.Tensor
    a: torch.Tensor
    b_t: torch.Tensor
    scaling: float
    keep: torch.Tensor | None

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write the output for `x` (n, in) to `out` (n, out)."""
        matmul(x, self.weight.t(), out=out)
        out.addmm_(_dropped(x, self.keep) @ self.a.t(), self.b_t, alpha=self.scaling)

    def backward(self, grad: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the gradient of the input to `out` (n, in) and return that of `A x` (n, r), given `grad` (n, out)."""
        grad_low = (grad @ self.b_t.t()).mul_(self.scaling)
        matmul(grad, self.weight, out=out)
        if self.keep is None:
            out.addmm_(grad_low, self.a)
        else:
            out.add_((grad_low @ self.a).mul_(self.keep))
        return grad_low

    def factor_grads(self, x: torch.Tensor, grad: torch.Tensor, grad_low: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of A and of B transposed, given `x` (n, in), `grad` (n, out) and `backward`'s result."""
        x = _dropped(x, self.keep)
        grad_b_t = matmul_over_rows(x @ self.a.t(), grad)
        return matmul_over_rows(grad_low, x), grad_b_t.mul_(self.scaling)


def _dropped(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return x if keep is None else x * keep


def _rows_of(keep: torch.Tensor | None, rows: torch.Tensor | slice) -> torch.Tensor | None:
    return None if keep is None else keep[rows]


def forward_loop(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return (output (T, H), hidden (S, 2I) or empty, rows (S,), counts (E,)), one expert after the other.

    `hidden` is the gate_up output, empty unless `save`; `gate_up.keep` has T rows, `down.keep` has S.
    """
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    tokens = rows // top_k
    x, weights = x_TH.index_select(0, tokens), weights_TK.flatten().index_select(0, rows)[:, None]
    hidden, by_row = x.new_empty(x.shape[0], gate_up.weight.shape[1]), torch.empty_like(x)
    up_factors, down_factors = gate_up.factors(dtype), down.factors(dtype)
    for expert, part in hit_experts(counts):
        one = gate_up.of_expert(expert, *up_factors, _rows_of(gate_up.keep, tokens[part]))
        one.forward(x[part], hidden[part])
        weighted = activation(hidden[part])[2].mul_(weights[part]).to(dtype)
        one = down.of_expert(expert, *down_factors, _rows_of(down.keep, part))
        one.forward(weighted, by_row[part])
    return sum_by_token(by_row, rows, top_k), hidden if save else hidden.new_empty(0, hidden.shape[1]), rows, counts


def backward_loop(
    grad_TH, x_TH, weights_TK, gate_up: Projection, down: Projection, hidden, rows, counts, needs_factors: bool
):
    """Return the gradients of x (T, H), weights (T, K), and of A and B of gate_up and down; those empty unless asked.

    Experts without rows get zeros.
    """
    top_k, dtype = weights_TK.shape[1], x_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten().index_select(0, rows)[:, None]
    x, grad_rows = x_TH.index_select(0, tokens), grad_TH.index_select(0, tokens)
    by_row, grad_weights = torch.empty_like(x), torch.empty(rows.numel(), dtype=wide, device=x.device)
    up_factors, down_factors = gate_up.factors(dtype), down.factors(dtype)
    grads = [torch.zeros_like(t) if needs_factors else t.new_empty(0) for t in (*up_factors, *down_factors)]
    for expert, part in hit_experts(counts):
        gate, up, active = activation(hidden[part])
        weighted = (active * weights[part]).to(dtype)
        one = down.of_expert(expert, *down_factors, _rows_of(down.keep, part))
        grad_active = torch.empty_like(weighted)
        grad_low = one.backward(grad_rows[part], grad_active)
        if needs_factors:
            grads[2][expert], grads[3][expert] = one.factor_grads(weighted, grad_rows[part], grad_low)
        grad_active = grad_active.to(wide)
        # The weighted sum over I gives the weight's gradient and spares keeping the down projection's output.
        grad_weights[rows[part]] = (grad_active * active).sum(-1)
        grad_hidden = torch.cat(swiglu_backward(grad_active.mul_(weights[part]), gate, up), -1).to(dtype)
        one = gate_up.of_expert(expert, *up_factors, _rows_of(gate_up.keep, tokens[part]))
        grad_low = one.backward(grad_hidden, by_row[part])
        if needs_factors:
            grads[0][expert], grads[1][expert] = one.factor_grads(x[part], grad_hidden, grad_low)
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    if needs_factors:
        grads = [*gate_up.undo_factors(*grads[:2]), *down.undo_factors(*grads[2:])]
    return sum_by_token(by_row, rows, top_k), grad_weights, *grads


def _grouped_factors(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `projection.factors` as dense tensors, the rank filled up with zeros to what `F.grouped_mm` takes."""
    a, b_t = projection.factors(dtype)
    missing = -a.shape[1] % RANK_MULTIPLE
    return F.pad(a, (0, 0, 0, missing)).contiguous(), F.pad(b_t, (0, 0, 0, missing)).contiguous()


def _forward_rows(x, projection: Projection, factors, keep, ends) -> torch.Tensor:
    """Return the output (S, out) of all experts for their rows `x` (S, in)."""
    a, b_t = factors
    output = F.grouped_mm(x, projection.weight.transpose(-2, -1), offs=ends)
    low = F.grouped_mm(_dropped(x, keep), a.transpose(-2, -1), offs=ends)
    return output.add_(F.grouped_mm(low, b_t, offs=ends), alpha=projection.scaling)


def _backward_rows(grad, x, projection: Projection, factors, keep, ends, needs_factors: bool):
    """Return the gradients of the input (S, in), and of A and B where asked, else two empty tensors."""
    a, b_t = factors
    grad_low = F.grouped_mm(grad, b_t.transpose(-2, -1), offs=ends).mul_(projection.scaling)
    grad_x = F.grouped_mm(grad, projection.weight, offs=ends)
    grad_x.add_(_dropped(F.grouped_mm(grad_low, a, offs=ends), keep))
    if not needs_factors:
        return grad_x, x.new_empty(0), x.new_empty(0)
    x, rank = _dropped(x, keep), projection.lora_a.shape[0] // len(a)
    low = F.grouped_mm(x, a.transpose(-2, -1), offs=ends)
    grad_a = F.grouped_mm(grad_low.t(), x, offs=ends)[:, :rank]
    grad_b_t = F.grouped_mm(low.t(), grad, offs=ends)[:, :rank].mul_(projection.scaling)
    return grad_x, *projection.undo_factors(grad_a, grad_b_t)


def forward_grouped(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return what `forward_loop` returns, by `F.grouped_mm` over all rows at once."""
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows][:, None]
    keep = _rows_of(gate_up.keep, tokens)
    hidden = _forward_rows(x_TH[tokens], gate_up, _grouped_factors(gate_up, dtype), keep, ends)
    weighted = activation(hidden)[2].mul_(weights).to(dtype)
    by_row = _forward_rows(weighted, down, _grouped_factors(down, dtype), down.keep, ends)
    return sum_by_token(by_row, rows, top_k), hidden if save else hidden[:0].clone(), rows, counts


def backward_grouped(
    grad_TH, x_TH, weights_TK, gate_up: Projection, down: Projection, hidden, rows, counts, needs_factors: bool
):
    """Return what `backward_loop` returns, by `F.grouped_mm`."""
    top_k, dtype = weights_TK.shape[1], x_TH.dtype
    ends = counts.cumsum(0).to(torch.int32)
    wide = torch.promote_types(dtype, torch.float32)
    tokens, weights = rows // top_k, weights_TK.flatten()[rows].to(wide)[:, None]
    gate, up, active = activation(hidden)
    weighted, factors = (active * weights).to(dtype), _grouped_factors(down, dtype)
    grad_active, *down_grads = _backward_rows(
        grad_TH[tokens].contiguous(), weighted, down, factors, down.keep, ends, needs_factors
    )
    grad_active = grad_active.to(wide)
    grad_rows = (grad_active * active).sum(-1)
    grad_hidden = torch.cat(swiglu_backward(grad_active.mul_(weights), gate, up), -1).to(dtype)
    keep, factors = _rows_of(gate_up.keep, tokens), _grouped_factors(gate_up, dtype)
    by_row, *up_grads = _backward_rows(grad_hidden, x_TH[tokens], gate_up, factors, keep, ends, needs_factors)
    grad_weights = torch.empty_like(grad_rows)
    grad_weights[rows] = grad_rows
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    return sum_by_token(by_row, rows, top_k), grad_weights, *up_grads, *down_grads
