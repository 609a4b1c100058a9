"""Matrix products and linear layers; on CPU in fp32 through oneDNN, which PyTorch reserves for bf16."""

import torch
from torch.nn import functional as F

# Below so many rows oneDNN's set-up costs more than it saves (benchmarks/LOG.md).
ONEDNN_MIN_ROWS = 8
# Subclasses (DTensor of tensor parallelism, quantised weights) have no rule for oneDNN's operator.
PLAIN = (torch.Tensor, torch.nn.Parameter)


def _prefers_onednn(a: torch.Tensor, b: torch.Tensor) -> bool:
    # PyTorch multiplies fp32 by MKL, which on AMD processors runs at less than half of oneDNN's speed.
    return (
        type(a) in PLAIN
        and type(b) in PLAIN
        and a.dtype == torch.float32
        and b.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] >= ONEDNN_MIN_ROWS
        and a.numel() > 0
        and b.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return `a @ b` (M, N) of `a` (M, K) and `b` (K, N), written to `out` where given; not differentiable.

    Any strides; full precision of the dtype in every path.
    """
    if not _prefers_onednn(a, b):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    product = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return product if out is None else out.copy_(product)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        output = matmul(x.flatten(0, -2), weight.t()).view(*x.shape[:-1], -1)
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = matmul(grad, weight).view(x.shape) if needs_x else None
        grad_weight = matmul(grad.t(), x.flatten(0, -2)) if needs_weight else None
        return grad_x, grad_weight, grad.sum(0) if needs_bias else None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`: (..., N) of `x` (..., K), `weight` (N, K) and `bias` (N,) or None."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or x.dim() < 2:
        return F.linear(x, weight, bias)
    if not _prefers_onednn(x.flatten(0, -2), weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)
