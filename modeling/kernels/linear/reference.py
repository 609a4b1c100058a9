"""Matrix products and linear layers; on CPU in fp32 through oneDNN, which PyTorch reserves for bf16."""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..block_fp8.reference import ROW_BLOCK, dequantize, dequantize_stacked, quantize_activations

# oneDNN compiles a program for every shape: 0.3 ms and up to 1 MiB each (benchmarks/LOG.md). Row counts change from
# batch to batch and from expert to expert, so a product has a multiple of 256 rows, and what is left is filled up with
# zeros to the next of a few counts. (512, 512) by 32 rows takes MKL 230 us and oneDNN 142, by 40 rows 270 and, as 48,
# 170; by fewer than 8 rows MKL is as fast.
COARSE_ROWS = 256
FILLED_ROWS = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256)
LEAST_FILLED = 8
FINE_ROWS = 32
# A call costs 20 us more than MKL's: below so many multiplications that is more than it saves.
MIN_PRODUCTS = 2_000_000
# Subclasses (DTensor of tensor parallelism, quantised weights) have no rule for oneDNN's operator.
PLAIN = (torch.Tensor, torch.nn.Parameter)


def _onednn_rows(rows: int) -> int:
    """Return how many of `rows` can be summed over by oneDNN: the multiple of 256, or of 32 below that, that fits."""
    step = COARSE_ROWS if rows >= COARSE_ROWS else FINE_ROWS
    return rows // step * step


def _filled_rows(rows: int) -> int:
    """Return the row count that a product of `rows`, less than 256, is filled up to."""
    return next(filled for filled in FILLED_ROWS if filled >= rows)


def _prefers_onednn(a: torch.Tensor, b: torch.Tensor, products: int) -> bool:
    # PyTorch multiplies fp32 by MKL, which on AMD processors runs at less than half of oneDNN's speed.
    return (
        products >= MIN_PRODUCTS
        and type(a) in PLAIN
        and type(b) in PLAIN
        and a.dtype == torch.float32
        and b.dtype == torch.float32
        and a.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return `a @ b` (M, N) of `a` (M, K) and `b` (K, N), written to `out` where given; not differentiable.

    Any strides; full precision of the dtype in every path. The number of rows M may vary from call to call.
    """
    if not _prefers_onednn(a, b, a.numel() * b.shape[1]):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    rows, whole = a.shape[0], a.shape[0] // COARSE_ROWS * COARSE_ROWS
    if whole == rows:
        return _onednn(a, b) if out is None else out.copy_(_onednn(a, b))
    if out is None:
        out = a.new_empty(rows, b.shape[1])
    if whole:
        out[:whole] = _onednn(a[:whole], b)
    rest = rows - whole
    if rest < LEAST_FILLED:
        torch.mm(a[whole:], b, out=out[whole:])
    else:
        filled = F.pad(a[whole:], (0, 0, 0, _filled_rows(rest) - rest))
        out[whole:] = _onednn(filled, b)[:rest]
    return out


def matmul_over_rows(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return `a.T @ b` (N, K) of `a` (M, N) and `b` (M, K): a weight gradient, as `matmul` with M summed over."""
    rows = _onednn_rows(a.shape[0]) if _prefers_onednn(a, b, a.numel() * b.shape[1]) else 0
    if not rows:
        return torch.mm(a.t(), b) if out is None else torch.mm(a.t(), b, out=out)
    product = _onednn(a[:rows].t(), b[:rows])
    if rows < a.shape[0]:
        product.addmm_(a[rows:].t(), b[rows:])
    return product if out is None else out.copy_(product)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        # A frozen weight's gradient is what needs the input.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape = x.shape
        output = matmul(x.flatten(0, -2), weight.t()).view(*x.shape[:-1], -1)
        return output if bias is None else output.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = matmul(grad, weight).view(ctx.shape) if needs_x else None
        grad_weight = matmul_over_rows(grad, x.flatten(0, -2)) if needs_weight else None
        return grad_x, grad_weight, grad.sum(0) if needs_bias else None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`: (..., N) of `x` (..., K), `weight` (N, K) and `bias` (N,) or None."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or x.dim() < 2:
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if rows < FINE_ROWS or not _prefers_onednn(x, weight, rows * weight.numel()):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def fp8_linear_forward(x_TC: torch.Tensor, codes_RC: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `x_TC @ W.T` (T, R) for the block-fp8 weight W, dequantised to the dtype of `x_TC`.

    `scale` is (M, N), or (P, M, N) where W is P matrices stacked by rows, each with blocks of its own.
    """
    return F.linear(x_TC, dequantize_stacked(codes_RC, scale, x_TC.dtype))


def fp8_linear_backward(grad_TR: torch.Tensor, codes_RC: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `grad_TR @ W` (T, C), the gradient to the input; the weight is frozen."""
    return grad_TR @ dequantize_stacked(codes_RC, scale, grad_TR.dtype)


def fp8_linear_quantized_forward(x_TC: torch.Tensor, codes_RC: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `q(x_TC) @ W.T` (T, R), where q rounds to fp8 with a scale for every 128 columns of each row.

    The product is that of the dequantised numbers in fp32 or wider, rounded once (DeepSeek-V3 report, section 3.3.2).
    """
    wide = torch.promote_types(x_TC.dtype, torch.float32)
    x_TC, dtype = dequantize(*quantize_activations(x_TC), wide, block=ROW_BLOCK), x_TC.dtype
    return F.linear(x_TC, dequantize_stacked(codes_RC, scale, wide)).to(dtype)
