"""Cross entropy of a linear head without ever holding all logits (as in Liger kernel and Cut Cross-Entropy)."""

# T tokens, H hidden, V vocabulary

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..linear.reference import matmul, matmul_over_rows

# Rows whose logits are held at once: as many as make 2^22 numbers, but at least 256, below which the weight
# gradient's accumulation (V*H read and written per chunk) costs more than the products themselves.
CHUNK_ELEMENTS = 2**22
MIN_CHUNK_ROWS = 256
# Of these, the softmax is taken over so many numbers at a time, which stay in the processor's cache.
SOFTMAX_ELEMENTS = 2**19
# The weight gradient of a chunk is made and added in parts of so many numbers, since a second one of the whole weight
# would be most of the peak memory (benchmarks/LOG.md).
WEIGHT_ELEMENTS = 2**22


def _losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int, with_gradient: bool
) -> torch.Tensor:
    """Return the summed loss of `logits` (rows, V); the logits are overwritten by its gradient where asked."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = logits.new_zeros((), dtype=wide)
    # Other devices have no such cache, and would run a thousand small kernels for nothing.
    rows = max(1, SOFTMAX_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, logits.shape[0])
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        kept = target != ignore_index
        index = target.clamp(min=0)[:, None]
        log_p = part.log_softmax(-1, dtype=wide)
        total -= torch.where(kept, log_p.gather(-1, index).squeeze(-1), 0).sum()
        if with_gradient:
            # softmax - one_hot, zero in ignored rows
            p = log_p.exp_()
            p.scatter_add_(-1, index, p.new_full(index.shape, -1.0))
            torch.mul(p, kept[:, None], out=part)
    return total


def _add_weight_gradient(total: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add `grad_logits.T @ hidden` to `total` (V, H), of `grad_logits` (rows, V) and `hidden` (rows, H)."""
    rows = max(1, WEIGHT_ELEMENTS // hidden.shape[1])
    for part, grad in zip(total.split(rows), grad_logits.split(rows, dim=1), strict=True):
        part += matmul_over_rows(grad, hidden)


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients along in the forward pass, where each chunk's logits are at hand."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, ignore_index):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums of chunks are kept in fp32, as one product over all rows would have kept them.
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        total = hidden.new_zeros((), dtype=wide)
        rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            chunk = hidden[start : start + rows]
            logits = matmul(chunk, weight.t())
            total += _losses_and_gradient(
                logits, targets[start : start + rows], ignore_index, needs_hidden or needs_weight
            )
            if grad_hidden is not None:
                matmul(logits, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                _add_weight_gradient(grad_weight, logits, chunk)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # In fp32: a factor of 1/N rounded to bf16 would scale every gradient.
        scaled = [
            None if saved is None else saved.to(grad.dtype).mul(grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None


def linear_cross_entropy(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Return the summed cross entropy (scalar, nats, at least fp32) of `hidden_TH @ weight_VH.T` at `targets_T`.

    Rows whose target is `ignore_index` count nothing. Peak extra memory is one chunk of logits and the gradients of
    the two inputs. Products are in the dtype of the inputs, everything after them at least fp32.
    """
    if torch.compiler.is_compiling():
        logits = hidden_TH @ weight_VH.t()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets_T, ignore_index=ignore_index, reduction="sum")
    device = hidden_TH.device.type
    if torch.is_autocast_enabled(device):
        hidden_TH, weight_VH = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_TH, weight_VH))
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, targets_T, ignore_index)
