"""Cross entropy and log-probabilities of an output head, of whatever kind it is, never holding all logits."""

# T tokens, H hidden, V vocabulary

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .head_cross_entropy import linear_cross_entropy
from .kernels.linear_cross_entropy.reference import MIN_CHUNK_ROWS
from .kernels.linear_log_probs.op import linear_log_probs
from .kernels.linear_log_probs.reference import entropy_of
from .linear import has_plain_weight
from .mtp import IGNORE_INDEX


def summed_head_loss(
    head: nn.Module, hidden_TH: torch.Tensor, targets_T: torch.Tensor, head_is_constant: bool = False
) -> torch.Tensor:
    """Return the summed cross entropy (scalar, nats, at least fp32) of `head(hidden_TH)` at `targets_T`.

    Positions whose target is -100 count nothing and cost nothing: they are left out before the head.

    Args:
        head: the output head. A plain linear layer's matrix is used directly; an adapter, a quantised, offloaded or
            tensor-parallel head is called, a chunk of rows at a time, and called again for its gradient.
        hidden_TH: what the head is applied to.
        targets_T: token ids, -100 where nothing is to be predicted.
        head_is_constant: the gradient reaches `hidden_TH` but not the head.
    """
    targets_T = targets_T.to(hidden_TH.device)
    # A compiled graph has fixed shapes, and keeps every position.
    if not torch.compiler.is_compiling():
        labelled = targets_T != IGNORE_INDEX
        hidden_TH, targets_T = hidden_TH[labelled], targets_T[labelled]
    if has_plain_weight(head) and head.weight.device == hidden_TH.device:
        weight = head.weight.detach() if head_is_constant else head.weight
        return linear_cross_entropy(hidden_TH, weight, targets_T, IGNORE_INDEX)

    def chunk_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _apply(head, hidden, head_is_constant)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets.to(logits.device), ignore_index=IGNORE_INDEX, reduction="sum")

    # There is at least one chunk, so that a batch without labels is still connected to every parameter.
    chunks = zip(hidden_TH.split(MIN_CHUNK_ROWS), targets_T.split(MIN_CHUNK_ROWS), strict=True)
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def head_log_probs(
    head: nn.Module, hidden_TH: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) and the entropy (nats) of softmax(`head(hidden_TH)` / temperature): (T,), at least fp32.

    Both are differentiable, and 0 where the target is -100: such positions are left out before the head. `head` and
    the rest are as in `summed_head_loss`.
    """
    targets_T = targets_T.to(hidden_TH.device)
    labelled = targets_T != IGNORE_INDEX
    hidden, targets = hidden_TH[labelled], targets_T[labelled]
    if has_plain_weight(head) and head.weight.device == hidden.device:
        values = linear_log_probs(hidden, head.weight, targets, temperature)
    else:

        def chunk_log_probs(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = head(hidden)
            log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
            return log_p.gather(-1, targets.to(log_p.device)[:, None]).squeeze(-1), entropy_of(log_p)

        chunks = zip(hidden.split(MIN_CHUNK_ROWS), targets.split(MIN_CHUNK_ROWS), strict=True)
        parts = [checkpoint(chunk_log_probs, *chunk, use_reentrant=False) for chunk in chunks]
        values = [torch.cat(part).to(hidden.device) for part in zip(*parts, strict=True)]
    # Also connected to the model where nothing is labelled.
    empty = values[0].new_zeros(targets_T.shape)
    log_probs, entropy = (empty.masked_scatter(labelled, value) for value in values)
    return log_probs, entropy


def _apply(head: nn.Module, hidden: torch.Tensor, head_is_constant: bool) -> torch.Tensor:
    if not head_is_constant:
        return head(hidden)
    return functional_call(head, {name: parameter.detach() for name, parameter in head.named_parameters()}, (hidden,))
