"""SwiGLU (Shazeer 2020): silu(gate) * up, saving only gate and up."""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def swiglu_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` with one tensor of memory; no gradient."""
    return F.silu(gate).mul_(up)


def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `silu(gate) * up` to gate and up, given `grad`; all of one shape."""
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return swiglu_backward(grad, gate, up)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, elementwise, in the dtype of the inputs (same shape (..., I))."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)
