"""Cross entropy of a linear head: of the log-probabilities' operator where its kernels run, else the reference."""

# T tokens, H hidden, V vocabulary

import torch

from ..linear_log_probs.op import linear_log_probs_alone, runs_kernel
from . import reference


def linear_cross_entropy(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Return the summed cross entropy (scalar, nats, at least fp32) of `hidden_TH @ weight_VH.T` at `targets_T`.

    Rows whose target is `ignore_index` count nothing. Where kernels run, there never are logits, and the gradient makes
    them again tile by tile. Elsewhere it is the reference, which takes the gradients along in the forward pass: one
    product in four less, which on CPU counts for more than the memory.
    """
    device = hidden_TH.device.type
    if torch.is_autocast_enabled(device):
        hidden_TH, weight_VH = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_TH, weight_VH))
    if not runs_kernel(hidden_TH, weight_VH):
        return reference.linear_cross_entropy(hidden_TH, weight_VH, targets_T, ignore_index)
    kept = targets_T != ignore_index
    log_probs = linear_log_probs_alone(hidden_TH, weight_VH, targets_T.masked_fill(~kept, 0))
    return -torch.where(kept, log_probs, 0).sum()
