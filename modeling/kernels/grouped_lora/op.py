"""The routed experts with low-rank terms as torch operators: differentiable, and opaque to torch.compile."""

from typing import NamedTuple

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..grouped_experts.reference import can_group
from ..launch import runs_triton
from . import loop, reference


class LowRank(NamedTuple):
    """What is added to a projection of all experts: `scaling * B (A x)`, in the layout PEFT has for parameters.

    Attributes:
        lora_a: A (E*r, in), the experts one after the other.
        lora_b: B (out, r*E), the expert index fastest.
        scaling: the factor, often alpha / r.
        dropout: the share of A's input that is dropped: 0 unless training.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float
    dropout: float = 0.0


@torch.library.custom_op(add_op_namespace_prefix("grouped_lora_forward"), mutates_args=())
def _forward(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up_scale: torch.Tensor | None,
    down_scale: torch.Tensor | None,
    gate_up_a: torch.Tensor,
    gate_up_b: torch.Tensor,
    down_a: torch.Tensor,
    down_b: torch.Tensor,
    gate_up_scaling: float,
    down_scaling: float,
    gate_up_keep: torch.Tensor | None,
    down_keep: torch.Tensor | None,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    gate_up = reference.Projection(gate_up_proj, gate_up_scale, gate_up_a, gate_up_b, gate_up_scaling, gate_up_keep)
    down = reference.Projection(down_proj, down_scale, down_a, down_b, down_scaling, down_keep)
    run = reference.forward_grouped if can_group(x, gate_up_proj, down_proj) else loop.forward_loop
    if runs_triton(x):
        from . import kernel

        run = kernel.forward if kernel.takes(x, gate_up, down) else run
    output, (hidden, up_low, down_low, rows, counts) = run(x, indices, weights, gate_up, down, save)
    return output, hidden, up_low, down_low, rows, counts


@_forward.register_fake
def _(x, indices, weights, gate_up_proj, down_proj, gate_up_scale, down_scale, gate_up_a, gate_up_b, down_a, *rest):
    num_rows, experts = indices.numel() if rest[-1] else 0, gate_up_proj.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = x.new_empty((num_rows, gate_up_proj.shape[1]))
    lows = [x.new_empty((num_rows, a.shape[0] // experts), dtype=wide) for a in (gate_up_a, down_a)]
    return torch.empty_like(x), hidden, *lows, indices.new_empty(indices.numel()), indices.new_empty(experts)


@torch.library.custom_op(add_op_namespace_prefix("grouped_lora_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up_scale: torch.Tensor | None,
    down_scale: torch.Tensor | None,
    gate_up_a: torch.Tensor,
    gate_up_b: torch.Tensor,
    down_a: torch.Tensor,
    down_b: torch.Tensor,
    gate_up_keep: torch.Tensor | None,
    down_keep: torch.Tensor | None,
    hidden: torch.Tensor,
    up_low: torch.Tensor,
    down_low: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    gate_up_scaling: float,
    down_scaling: float,
    needs_factors: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    gate_up = reference.Projection(gate_up_proj, gate_up_scale, gate_up_a, gate_up_b, gate_up_scaling, gate_up_keep)
    down = reference.Projection(down_proj, down_scale, down_a, down_b, down_scaling, down_keep)
    run = reference.backward_grouped if can_group(x, gate_up_proj, down_proj) else loop.backward_loop
    if runs_triton(x):
        from . import kernel

        run = kernel.backward if kernel.takes(x, gate_up, down) else run
    grad_x, grad_weights, up_a, up_b, grad_down_a, grad_down_b = run(
        grad.contiguous(),
        x,
        weights,
        gate_up,
        down,
        reference.Kept(hidden, up_low, down_low, rows, counts),
        needs_factors,
    )
    return grad_x, grad_weights, up_a, up_b, grad_down_a, grad_down_b


@_backward.register_fake
def _(grad, x, weights, gate_up_proj, down_proj, gate_up_scale, down_scale, *rest):
    grads = [torch.empty_like(factor) if rest[-1] else factor.new_empty(0) for factor in rest[:4]]
    return torch.empty_like(x), torch.empty_like(weights), *grads


def _setup_context(ctx, inputs, output):
    x, _, *tensors, gate_up_scaling, down_scaling, gate_up_keep, down_keep, _ = inputs
    ctx.save_for_backward(x, *tensors, gate_up_keep, down_keep, *output[1:])
    ctx.scalings = gate_up_scaling, down_scaling
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, *_):
    refuse_second_derivative("grouped_lora")
    none = (None,) * 16
    if grad is None:
        return none
    needs_factors = any(ctx.needs_input_grad[7:11])
    grad_x, grad_weights, *factors = _backward(grad, *ctx.saved_tensors, *ctx.scalings, needs_factors)
    return grad_x, None, grad_weights, *none[3:7], *(factors if needs_factors else none[7:11]), *none[11:]


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def grouped_lora(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up: LowRank,
    down: LowRank,
    gate_up_scale_inv: torch.Tensor | None = None,
    down_scale_inv: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `grouped_experts` would return with `W + scaling * B A` for each expert's two projections: (T, H).

    No tensor of the size of the projections is made, forward or backward; they get no gradient.

    Args:
        x: tokens (T, H), any floating dtype.
        indices: chosen experts (T, K), int64 in [0, E); no expert twice in a row.
        weights: their weights (T, K), fp32 or the dtype of `x`.
        gate_up_proj: (E, 2I, H), gate rows first, frozen; in any floating dtype, or block-fp8 codes.
        down_proj: (E, H, I), likewise.
        gate_up: what is added to `gate_up_proj`; the factors in any floating dtype, cast to that of `x`.
        down: what is added to `down_proj`.
        gate_up_scale_inv: scales of fp8 codes: fp32 (E, 2, M, N), those of gate and of up.
        down_scale_inv: likewise (E, M, N).

    Raises:
        RuntimeError: a projection requires a gradient.
    """
    if gate_up_proj.requires_grad or down_proj.requires_grad:
        raise RuntimeError("grouped_lora gives its projections no gradient; freeze them with requires_grad_(False)")
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    factors = (gate_up.lora_a, gate_up.lora_b, down.lora_a, down.lora_b)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, *factors))
    return _forward(
        x,
        indices,
        weights,
        gate_up_proj,
        down_proj,
        gate_up_scale_inv,
        down_scale_inv,
        *factors,
        gate_up.scaling / (1 - gate_up.dropout),
        down.scaling / (1 - down.dropout),
        _draw_kept(x, x.shape, gate_up.dropout),
        _draw_kept(x, (indices.numel(), down_proj.shape[2]), down.dropout),
        save,
    )[0]


def _draw_kept(like: torch.Tensor, shape: tuple[int, ...], dropout: float) -> torch.Tensor | None:
    """Return which numbers of a tensor of this shape are kept, each with a chance of its own; None for all."""
    return torch.rand(shape, device=like.device) >= dropout if dropout else None
