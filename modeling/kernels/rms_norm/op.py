"""RMSNorm, with and without a residual, as torch operators: differentiable, and opaque to torch.compile."""

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


@torch.library.custom_op(add_op_namespace_prefix("rms_norm_forward"), mutates_args=())
def _forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if runs_triton(x):
        from . import kernel

        if kernel.takes(x):
            return kernel.forward(x, weight, eps, residual)
    total = x if residual is None else x + residual
    output, rstd = reference.rms_norm_forward(total, weight, eps)
    return output, rstd, x.new_empty(0) if residual is None else total


@_forward.register_fake
def _(x, residual, weight, eps):
    output = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.promote_types(x.dtype, torch.float32))
    return output, rstd, x.new_empty(x.shape if residual is not None else (0,))


@torch.library.custom_op(add_op_namespace_prefix("rms_norm_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if runs_triton(x):
        from . import kernel

        if kernel.takes(x):
            grad_x, grad_weight = kernel.backward(grad, x, weight, rstd, needs_weight, grad_total)
            return grad_x, weight.new_empty(0) if grad_weight is None else grad_weight
    grad_x, grad_weight = reference.rms_norm_backward(grad, x, weight, rstd, needs_weight)
    grad_x = grad_x if grad_total is None else grad_x + grad_total
    return grad_x, weight.new_empty(0) if grad_weight is None else grad_weight


@_backward.register_fake
def _(grad, grad_total, x, weight, rstd, needs_weight):
    return x.new_empty(x.shape), weight.new_empty(weight.shape if needs_weight else (0,))


def _setup_context(ctx, inputs, output):
    x, residual, weight, _ = inputs
    _, rstd, total = output
    ctx.save_for_backward(x if residual is None else total, weight, rstd)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, _, grad_total):
    refuse_second_derivative("rms_norm")
    x, weight, rstd = ctx.saved_tensors
    if grad is None:
        return grad_total, grad_total if ctx.has_residual else None, None, None
    grad_total = grad_total if ctx.has_residual else None
    grad_x, grad_weight = _backward(grad, grad_total, x, weight, rstd, ctx.needs_input_grad[2])
    return grad_x, grad_x if ctx.has_residual else None, grad_weight if ctx.needs_input_grad[2] else None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)`, as the reference does; kept for backward: `x`, a number a row."""
    return _forward(x, None, weight, eps)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rms_norm(x + residual)` and the sum, all (..., D) in one dtype, as the reference does.

    Raises:
        ValueError: `x` and `residual` differ in shape or dtype.
    """
    if x.shape != residual.shape or x.dtype != residual.dtype:
        theirs = f"{tuple(residual.shape)} {residual.dtype}"
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype}, residual {theirs}; they must be alike")
    output, _, total = _forward(x, residual, weight, eps)
    return output, total
