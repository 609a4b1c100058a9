"""Log-probability of a token and entropy of its distribution, under a linear head, without ever holding all logits."""

# T tokens, H hidden, V vocabulary

import torch
from torch.autograd.function import once_differentiable

from ..linear.reference import matmul, matmul_over_rows
from ..linear_cross_entropy.reference import CHUNK_ELEMENTS, MIN_CHUNK_ROWS


def linear_log_probs_forward(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies, each (T,) in fp32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_probs, entropy = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(2))
    for rows in _chunks(len(hidden), len(weight)):
        log_p = _log_softmax(hidden[rows], weight, temperature, wide)
        log_probs[rows] = log_p.gather(-1, targets[rows, None]).squeeze(-1)
        entropy[rows] = entropy_of(log_p)
    return log_probs, entropy


def linear_log_probs_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    entropy: torch.Tensor,
    grad_log_probs: torch.Tensor,
    grad_entropy: torch.Tensor,
    temperature: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients to `hidden` and `weight`, where needed; each chunk's logits are made a second time."""
    wide = entropy.dtype
    grad_hidden = torch.empty_like(hidden) if needs_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
    for rows in _chunks(len(hidden), len(weight)):
        log_p = _log_softmax(hidden[rows], weight, temperature, wide)
        p = log_p.exp()
        # d log p_t / dz = onehot - p; dH / dz = -p (log p + H)
        factor = grad_log_probs[rows, None] + grad_entropy[rows, None] * (
            log_p.masked_fill(p == 0, 0) + entropy[rows, None]
        )
        grad = p.mul_(factor).neg_()
        grad.scatter_add_(-1, targets[rows, None], grad_log_probs[rows, None])
        grad = (grad / temperature).to(hidden.dtype)
        if grad_hidden is not None:
            matmul(grad, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight += matmul_over_rows(grad, hidden[rows])
    return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


class _LinearLogProbs(torch.autograd.Function):
    """Makes each chunk's logits a second time for the gradient, which comes in as one factor per token."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        log_probs, entropy = linear_log_probs_forward(hidden, weight, targets, temperature)
        ctx.save_for_backward(hidden, weight, targets, entropy)
        ctx.temperature = temperature
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs, grad_entropy):
        hidden, weight, targets, entropy = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        inputs = (hidden, weight, targets, entropy, grad_log_probs, grad_entropy)
        return *linear_log_probs_backward(*inputs, ctx.temperature, needs_hidden, needs_weight), None, None


def linear_log_probs(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) and the entropy (nats) of softmax(`hidden_TH @ weight_VH.T` / temperature).

    Both are (T,), at least fp32, and differentiable. Products are in the dtype of the inputs, everything after them at
    least fp32. Peak extra memory is one chunk of logits and the gradients of the two inputs.
    """
    device = hidden_TH.device.type
    if torch.is_autocast_enabled(device):
        hidden_TH, weight_VH = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_TH, weight_VH))
    return _LinearLogProbs.apply(hidden_TH, weight_VH, targets_T, temperature)


def entropy_of(log_p: torch.Tensor) -> torch.Tensor:
    """Return the entropy (nats) over the last dimension of log-probabilities; what cannot happen counts nothing."""
    # 0 * -inf is NaN.
    return -(log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0)).sum(-1)


def _log_softmax(hidden: torch.Tensor, weight: torch.Tensor, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    logits = matmul(hidden, weight.t()).to(dtype)
    return logits.div_(temperature).log_softmax(-1)


def _chunks(num_rows: int, num_columns: int) -> list[slice]:
    size = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // num_columns)
    return [slice(start, start + size) for start in range(0, num_rows, size)]
