"""Cross entropy of a linear head without ever holding all logits (as in Liger kernel and Cut Cross-Entropy)."""

# T tokens, H hidden, V vocabulary

import torch
from torch.nn import functional as F

# Logits held at once: 2^22 fp32 numbers are 16 MiB. At least 256 rows, below which the weight gradient's
# accumulation (V*H read and written per chunk) costs more than the products themselves.
CHUNK_ELEMENTS = 2**22
MIN_CHUNK_ROWS = 256


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients along in the forward pass, where each chunk's logits are at hand."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, ignore_index):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        total = hidden.new_zeros((), dtype=wide)
        rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            chunk, target = hidden[start : start + rows], targets[start : start + rows]
            kept = target != ignore_index
            logits = (chunk @ weight.t()).to(wide)
            log_z = logits.logsumexp(-1)
            index = target.clamp(min=0)[:, None]
            picked = logits.gather(-1, index).squeeze(-1)
            total += torch.where(kept, log_z - picked, 0).sum()
            if not (needs_hidden or needs_weight):
                continue
            # d loss / d logits = softmax - one_hot, zero in ignored rows; written over the logits.
            grad = logits.sub_(log_z[:, None]).exp_()
            grad.scatter_add_(-1, index, -torch.ones_like(index, dtype=wide))
            grad = grad.mul_(kept[:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                if grad.dtype == wide:
                    grad_weight.addmm_(grad.t(), chunk)
                else:
                    grad_weight += grad.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


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
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, targets_T, ignore_index)
