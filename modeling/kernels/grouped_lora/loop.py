"""The routed experts with low-rank terms, one expert after the other: any dtype and size, and what CPUs are best at."""

# T tokens, K experts a token, S = T*K rows sorted by expert, N rows of some experts, n of one, H hidden, r rank

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..block_fp8.reference import dequantize_stacked
from ..grouped_experts.reference import activation, hit_experts, sort_rows, sum_by_token
from ..linear.reference import matmul
from ..swiglu.reference import swiglu_backward
from .reference import Kept, Projection, dropped, keep_if, rows_of

# What is not a product is done for several experts at once: a call costs as much as 20 rows. Not for all of them, as
# what is between the products would then take as much memory as what is kept.
ROWS_AT_ONCE = 2048


class _Part(NamedTuple):
    """Experts that are next to each other among those that were hit: their rows, and how many of them each has."""

    experts: list[int]
    rows: slice
    sizes: list[int]


def _parts(counts: torch.Tensor) -> list[_Part]:
    """Return the experts that were hit, in parts of at most `ROWS_AT_ONCE` rows or of one expert."""
    parts: list[_Part] = []
    for expert, rows in hit_experts(counts):
        size = rows.stop - rows.start
        if parts and rows.stop - parts[-1].rows.start <= ROWS_AT_ONCE:
            experts, before, sizes = parts[-1]
            parts[-1] = _Part([*experts, expert], slice(before.start, rows.stop), [*sizes, size])
        else:
            parts.append(_Part([expert], rows, [size]))
    return parts


class _Group(NamedTuple):
    """The projections of some experts: n rows of each, W (out, in) with its scales if it is fp8, A (r, in) and B
    transposed (r, out) in fp32 or wider, and s.

    The products with A and B are in their dtype: so small in bf16 they take several times as long on a CPU, and in a
    half-precision model PEFT has the factors in fp32 anyway.
    """

    sizes: list[int]
    weights: list[torch.Tensor]
    scales: list[torch.Tensor | None]
    a: list[torch.Tensor]
    b_t: list[torch.Tensor]
    scaling: float

    def dense(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Give W of each expert in `dtype`."""
        for weight, scale in zip(self.weights, self.scales, strict=True):
            yield weight.to(dtype) if scale is None else dequantize_stacked(weight, scale, dtype)

    def forward(self, x: torch.Tensor, x_low: torch.Tensor, low: torch.Tensor, out: torch.Tensor) -> None:
        """Write `A x_low` (N, r) to `low` and the output (N, out) to `out`; `x_low` is `x`, but wide and dropped."""
        rows = (_split(tensor, self.sizes) for tensor in (x, x_low, low, out))
        for one, one_low, to_low, to, weight, a, b_t in zip(*rows, self.dense(x.dtype), self.a, self.b_t, strict=True):
            matmul(one, weight.t(), out=to)
            _add_product(to, torch.mm(one_low, a.t(), out=to_low), b_t, self.scaling)

    def backward(
        self, grad: torch.Tensor, wide: torch.Tensor, keep: torch.Tensor | None, out: torch.Tensor, widen: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the input (N, in), in `out` or, if `widen`, wide, and of `A x` (N, r).

        `grad` is that of the output (N, out), `wide` the same in the dtype of the factors.
        """
        grad_low = wide.new_empty(wide.shape[0], self.a[0].shape[0])
        rows = (_split(tensor, self.sizes) for tensor in (grad, wide, grad_low, out))
        for one, one_wide, to_low, to, weight, b_t in zip(*rows, self.dense(grad.dtype), self.b_t, strict=True):
            torch.addmm(to_low, one_wide, b_t.t(), beta=0, alpha=self.scaling, out=to_low)
            matmul(one, weight, out=to)
        out = out.to(wide.dtype) if widen else out
        rows = (_split(tensor, self.sizes) for tensor in (out, grad_low, keep))
        for to, one_low, one_keep, a in zip(*rows, self.a, strict=True):
            if one_keep is None:
                _add_product(to, one_low, a, 1.0)
            else:
                to.add_((one_low @ a).mul_(one_keep))
        return out, grad_low

    def gradients(
        self,
        x_low: torch.Tensor,
        low: torch.Tensor,
        grad: torch.Tensor,
        grad_low: torch.Tensor,
        experts: list[int],
        out,
    ) -> None:
        """Write the gradients of A and B transposed to those of these experts in `out`; all are wide."""
        rows = (_split(tensor, self.sizes) for tensor in (x_low, low, grad, grad_low))
        for expert, x, one_low, one_grad, one_grad_low in zip(experts, *rows, strict=True):
            a, b_t = (stacked[expert] for stacked in out)
            torch.mm(one_grad_low.t(), x, out=a)
            torch.addmm(b_t, one_low.t(), one_grad, beta=0, alpha=self.scaling, out=b_t)


def _group(projection: Projection, part: _Part, factors: Sequence[torch.Tensor]) -> _Group:
    """Return the projections of the experts of `part`; `factors` are what `projection.factors` returns."""
    scales = projection.weight_scale_inv
    weights, a, b_t = ([stacked[expert] for expert in part.experts] for stacked in (projection.weight, *factors))
    of_weights = [None if scales is None else scales[expert] for expert in part.experts]
    return _Group(part.sizes, weights, of_weights, a, b_t, projection.scaling)


def _split(tensor: torch.Tensor | None, sizes: list[int]) -> Sequence[Any]:
    return [None] * len(sizes) if tensor is None else tensor.split(sizes)


def _add_product(out: torch.Tensor, low: torch.Tensor, factor: torch.Tensor, scaling: float) -> None:
    if out.dtype == low.dtype:
        out.addmm_(low, factor, alpha=scaling)
    else:
        out.add_(low @ factor, alpha=scaling)


def forward_loop(x_TH, indices_TK, weights_TK, gate_up: Projection, down: Projection, save: bool):
    """Return the output (T, H) and what is kept if `save`, one expert after the other.

    `gate_up.keep` has T rows, one for each token, `down.keep` has S, sorted by expert.
    """
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    rows, counts = sort_rows(indices_TK, gate_up.weight.shape[0])
    tokens = rows // top_k
    x_SH, weights = x_TH.index_select(0, tokens), weights_TK.flatten().index_select(0, rows)[:, None]
    hidden, by_row = x_SH.new_empty(x_SH.shape[0], gate_up.weight.shape[1]), torch.empty_like(x_SH)
    up_factors, down_factors = gate_up.factors(wide), down.factors(wide)
    lows = [x_SH.new_empty(x_SH.shape[0], projection.rank, dtype=wide) for projection in (gate_up, down)]
    for part in _parts(counts):
        here = part.rows
        x, up_keep = x_SH[here], rows_of(gate_up.keep, tokens[here])
        _group(gate_up, part, up_factors).forward(x, dropped(x.to(wide), up_keep), lows[0][here], hidden[here])
        weighted = activation(hidden[here])[2].mul_(weights[here])
        x_low = dropped(weighted, rows_of(down.keep, here))
        _group(down, part, down_factors).forward(weighted.to(dtype), x_low, lows[1][here], by_row[here])
    return sum_by_token(by_row, rows, top_k), keep_if([hidden, *lows], rows, counts, save)


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
    for part in _parts(counts):
        here, experts = part.rows, part.experts
        gate, up, active = activation(hidden[here])
        group, keep = _group(down, part, factors[2:]), rows_of(down.keep, here)
        grad, grad_wide = grad_rows[here], grad_rows[here].to(wide)
        grad_active, grad_low = group.backward(grad, grad_wide, keep, grad.new_empty(active.shape), True)
        if needs_factors:
            x_low = dropped(active * weights[here], keep)
            group.gradients(x_low, down_low[here], grad_wide, grad_low, experts, grads[2:])
        # The weighted sum over I gives the weight's gradient and spares keeping the down projection's output.
        torch.sum(grad_active * active, -1, out=grad_by_row[here])
        grad_wide = torch.cat(swiglu_backward(grad_active.mul_(weights[here]), gate, up), -1)
        group, keep = _group(gate_up, part, factors[:2]), rows_of(gate_up.keep, tokens[here])
        _, grad_low = group.backward(grad_wide.to(dtype), grad_wide, keep, by_row[here], False)
        if needs_factors:
            x_low = dropped(x[here].to(wide), keep)
            group.gradients(x_low, up_low[here], grad_wide, grad_low, experts, grads[:2])
    grad_weights = torch.empty_like(grad_by_row)
    grad_weights[rows] = grad_by_row
    grad_weights = grad_weights.view_as(weights_TK).to(weights_TK.dtype)
    if needs_factors:
        grads = [*gate_up.undo_factors(*grads[:2]), *down.undo_factors(*grads[2:])]
    return sum_by_token(by_row, rows, top_k), grad_weights, *grads
