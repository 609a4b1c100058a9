"""SwiGLU as torch operators: differentiable, and opaque to torch.compile."""

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


@torch.library.custom_op(add_op_namespace_prefix("swiglu_forward"), mutates_args=())
def _forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if runs_triton(gate):
        from . import kernel

        if kernel.takes(gate):
            return kernel.forward(gate, up)
    return reference.swiglu_forward(gate, up).contiguous()


@_forward.register_fake
def _(gate, up):
    return gate.new_empty(gate.shape)


@torch.library.custom_op(add_op_namespace_prefix("swiglu_backward"), mutates_args=())
def _backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if runs_triton(gate):
        from . import kernel

        if kernel.takes(gate):
            return kernel.backward(grad, gate, up)
    grad_gate, grad_up = reference.swiglu_backward(grad, gate, up)
    return grad_gate.contiguous(), grad_up.contiguous()


@_backward.register_fake
def _(grad, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_of_op(ctx, grad):
    refuse_second_derivative("swiglu")
    return _backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, elementwise, in the dtype of the inputs (same shape (..., I)); kept: gate and up.

    Raises:
        ValueError: gate and up differ in shape or dtype.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate is {tuple(gate.shape)} {gate.dtype}, up {tuple(up.shape)} {up.dtype}; they must be alike"
        )
    return _forward(gate, up)
