"""Routed SwiGLU experts whose frozen projections W have low-rank terms: W x + s B (A x), forward and backward.

W + s B A is never built, nor a gradient of W: beside the activations of `grouped_experts` the only tensors are of the
rank's size. Kept for backward are the input, the gate_up output and the indices; what has the width of the rank is
made again. As there, a loop over the experts that were hit, or `F.grouped_mm` on CUDA.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width, r rank
# M and N blocks of 128 rows and columns of fp8 weights

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..block_fp8.reference import dequantize_stacked
from ..grouped_experts.reference import activation, hit_experts, sort_rows, sum_by_token
from ..linear.reference import matmul, matmul_over_rows
from ..swiglu.reference import swiglu_backward


class Projection(NamedTuple):
    """A frozen projection of all experts, and what is added to it.

    Attributes:
        weight: (E, out, in), any float dtype, or fp8 codes.
        weight_scale_inv: of fp8 codes: fp32 (E, M, N), or (E, P, M, N) where P matrices are stacked by rows.
        lora_a: A (E*r, in), the experts one after the other.
        lora_b: B (out, r*E), the expert index fastest.
        scaling: s.
        keep: where not None, which numbers of A's input are not dropped: bool (T, in) or (S, in); the division by
            their share is part of `scaling`.
    """

    weight: torch.Tensor
    weight_scale_inv: torch.Tensor | None
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float
    keep: torch.Tensor | None

    def dense(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (out, in) of one expert in `dtype`."""
        if self.weight_scale_inv is None:
            return self.weight[expert].to(dtype)
        return dequantize_stacked(self.weight[expert], self.weight_scale_inv[expert], dtype)

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (E, r, in) and, as a view with dense rows, B transposed (E, r, out), in `dtype`."""
        experts, out_features, in_features = self.weight.shape
        b_t = self.lora_b.to(dtype).t().contiguous().view(-1, experts, out_features).transpose(0, 1)
        return self.lora_a.to(dtype).view(experts, -1, in_features), b_t

    def grads(self, grad_a: torch.Tensor, grad_b_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `factors` made of gradients (E, r, in) and (E, r, out), undone."""
        grad_b = grad_b_t.transpose(0, 1).flatten(0, 1).t().contiguous()
        return grad_a.flatten(0, 1).to(self.lora_a.dtype), grad_b.to(self.lora_b.dtype)


def _dropped(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return x if keep is None else x * keep


def forward_loop(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return (output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,)), one expert after the other.

    The gate_up output is empty unless `save`.
    """
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    tokens = rows // top_k
    x, weights = x_TH.index_select(0, tokens), weights_TK.flatten().index_select(0, rows)[:, None]
    hidden, by_row = x.new_empty(x.shape[0], gate_up.weight.shape[1]), torch.empty_like(x)
    factors = gate_up.factors(dtype), down.factors(dtype)
    for expert, part in hit_experts(counts):
        keep = None if gate_up.keep is None else gate_up.keep[tokens[part]]
        _project(x[part], gate_up, factors[0], expert, keep, hidden[part])
        weighted = activation(hidden[part])[2].mul_(weights[part]).to(dtype)
        keep = None if down.keep is None else down.keep[part]
        _project(weighted, down, factors[1], expert, keep, by_row[part])
    return sum_by_token(by_row, rows, top_k), hidden if save else hidden.new_empty(0, hidden.shape[1]), rows, counts


def _project(x, projection: Projection, factors, expert: int, keep, out) -> None:
    """Write `W x + s B (A x)` of one expert to `out` (n, out)."""
    a, b_t = factors[0][expert], factors[1][expert]
    matmul(x, projection.dense(expert, x.dtype).t(), out=out)
    out.addmm_(_dropped(x, keep) @ a.t(), b_t, alpha=projection.scaling)


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
    factors = [*gate_up.factors(dtype), *down.factors(dtype)]
    # B's in the memory order of B's own transpose, as `factors` has it.
    grads = [torch.zeros_like(t) if needs_factors else t.new_empty(0, 0, 0) for t in factors]
    for expert, part in hit_experts(counts):
        gate, up, active = activation(hidden[part])
        weighted = (active * weights[part]).to(dtype)
        keep = None if down.keep is None else down.keep[part]
        grad_active = x.new_empty(weighted.shape)
        of_factors = _project_back(grad_rows[part], weighted, down, factors[2:], expert, keep, grad_active)
        if needs_factors:
            grads[2][expert], grads[3][expert] = of_factors()
        grad_active = grad_active.to(wide)
        # The weighted sum over I gives the weight's gradient and spares keeping the down projection's output.
        grad_weights[rows[part]] = (grad_active * active).sum(-1)
        grad_hidden = torch.cat(swiglu_backward(grad_active.mul_(weights[part]), gate, up), -1).to(dtype)
        keep = None if gate_up.keep is None else gate_up.keep[tokens[part]]
        of_factors = _project_back(grad_hidden, x[part], gate_up, factors[:2], expert, keep, by_row[part])
        if needs_factors:
            grads[0][expert], grads[1][expert] = of_factors()
    of_factors = (*gate_up.grads(*grads[:2]), *down.grads(*grads[2:])) if needs_factors else tuple(grads)
    return sum_by_token(by_row, rows, top_k), grad_weights.view_as(weights_TK).to(weights_TK.dtype), *of_factors
