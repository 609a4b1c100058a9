"""RMSNorm (Zhang & Sennrich 2019) with fp32 statistics, saving only its input and one number a row."""

import torch
from torch.autograd.function import once_differentiable


def rms_norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (..., D), and 1 / sqrt(mean(x^2) + eps) of each row (..., 1) in fp32 or wider."""
    # In place wherever a pass over memory is spared: half the time of the plain expression and its gradient.
    wide = _wide_copy(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return weight * wide.mul_(rstd).to(x.dtype), rstd


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, needs_weight: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients to `x` and to `weight`, the latter only if needed, given `grad` (..., D)."""
    normed, grad = _wide_copy(x).mul_(rstd), _wide_copy(grad)
    grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype) if needs_weight else None
    grad.mul_(weight)
    along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(x.shape[-1])
    grad_x = grad.sub_(normed.mul_(along)).mul_(rstd)
    return grad_x.to(x.dtype), grad_weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        output, rstd = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, rstd = ctx.saved_tensors
        return *rms_norm_backward(grad, x, weight, rstd, ctx.needs_input_grad[1]), None


def _wide_copy(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)`, shape and dtype of `x` (..., D).

    Statistics are fp32 (float64 for float64 input); the normalised rows are rounded to `x.dtype` before the
    multiplication with `weight` (D,), as the published models do.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        # Dynamo fuses the plain expression; a Function would be an opaque boundary, and without gradients a detour.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return _RMSNorm.apply(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rms_norm(x + residual)` and the sum itself, which is the next residual; all (..., D) in one dtype.

    The sum is rounded to that dtype before it is normalised, as two separate operations would.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total
