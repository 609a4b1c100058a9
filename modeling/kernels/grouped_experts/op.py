"""The routed experts as torch operators: differentiable, and opaque to torch.compile."""

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


@torch.library.custom_op(add_op_namespace_prefix("grouped_experts_forward"), mutates_args=())
def _forward(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if runs_triton(x):
        from . import kernel

        if kernel.takes(x, gate_up_proj, down_proj):
            return kernel.forward(x, indices, weights, gate_up_proj, down_proj, save)
    grouped = reference.can_group(x, gate_up_proj, down_proj)
    run = reference.forward_grouped if grouped else reference.forward_loop
    return run(x, indices, weights, gate_up_proj, down_proj, save)


@_forward.register_fake
def _(x, indices, weights, gate_up_proj, down_proj, save):
    gate_up = x.new_empty((indices.numel() if save else 0, gate_up_proj.shape[1]))
    rows = indices.new_empty(indices.numel())
    return torch.empty_like(x), gate_up, rows, indices.new_empty(gate_up_proj.shape[0])


@torch.library.custom_op(add_op_namespace_prefix("grouped_experts_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    needs_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if runs_triton(x):
        from . import kernel

        if kernel.takes(x, gate_up_proj, down_proj):
            return kernel.backward(grad, x, weights, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights)
    grouped = reference.can_group(x, gate_up_proj, down_proj)
    run = reference.backward_grouped if grouped else reference.backward_loop
    return run(grad.contiguous(), x, weights, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights)


@_backward.register_fake
def _(grad, x, weights, gate_up_proj, down_proj, gate_up, rows, counts, needs_weights):
    projections = (gate_up_proj, down_proj)
    grads = [torch.empty_like(w) if needs_weights else w.new_empty(0) for w in projections]
    return torch.empty_like(x), torch.empty_like(weights), *grads


def _setup_context(ctx, inputs, output):
    x, _, weights, gate_up_proj, down_proj, _ = inputs
    ctx.save_for_backward(x, weights, gate_up_proj, down_proj, *output[1:])
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, *_):
    refuse_second_derivative("grouped_experts")
    if grad is None:
        return None, None, None, None, None, None
    needs_weights = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    grad_x, grad_weights, grad_gate_up_proj, grad_down_proj = _backward(grad, *ctx.saved_tensors, needs_weights)
    projections = (grad_gate_up_proj, grad_down_proj) if needs_weights else (None, None)
    return grad_x, None, grad_weights, *projections, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def grouped_experts(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
) -> torch.Tensor:
    """Return sum over k of `weights[t, k] * down(silu(gate(x[t])) * up(x[t]))` of expert `indices[t, k]`: (T, H).

    Args:
        x: tokens (T, H), any floating dtype.
        indices: chosen experts (T, K), int64 in [0, E); no expert twice in a row.
        weights: their weights (T, K), fp32 or the dtype of `x`.
        gate_up_proj: (E, 2I, H), gate rows first, in the dtype of `x`.
        down_proj: (E, H, I).

    Source: DeepSeek-V3 report, equations 12 and 13. Kept for backward: `x`, the gate_up output (T*K, 2I), indices.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, gate_up_proj, down_proj = (t.to(torch.get_autocast_dtype(device)) for t in (x, gate_up_proj, down_proj))
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, gate_up_proj, down_proj))
    if not save and x.shape[0] == 1 and _runs_here(x) and not runs_triton(x):
        return reference.forward_one_token(x, indices, weights, gate_up_proj, down_proj)
    return _forward(x, indices, weights, gate_up_proj, down_proj, save)[0]


def _runs_here(x: torch.Tensor) -> bool:
    # On a GPU reading the choice would wait for it; a traced, fake or meta tensor has no choice to be read.
    return x.device.type == "cpu" and type(x) is torch.Tensor and not torch.compiler.is_compiling()
