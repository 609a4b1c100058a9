"""Cross entropy of a plain output head by the fastest of what is installed."""

# T tokens, H hidden, V vocabulary

import importlib
from importlib.util import find_spec

import torch

from .kernels.launch import runs_triton
from .kernels.linear_cross_entropy import op


def linear_cross_entropy(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Return the summed cross entropy (scalar, nats, at least fp32) of `hidden_TH @ weight_VH.T` at `targets_T`.

    Where the head is frozen and `liger_kernel` is installed, it is Liger's on a GPU: two products and a chunk of logits
    in memory, in place of three products and none. Its gradient can be taken once only. Otherwise it is ours.
    """
    if not _is_for_liger(hidden_TH, weight_VH):
        return op.linear_cross_entropy(hidden_TH, weight_VH, targets_T, ignore_index)
    liger = importlib.import_module("liger_kernel.transformers.functional")
    device = hidden_TH.device.type
    if torch.is_autocast_enabled(device):
        hidden_TH, weight_VH = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_TH, weight_VH))
    return liger.liger_fused_linear_cross_entropy(
        hidden_TH, weight_VH.detach(), targets_T, ignore_index=ignore_index, reduction="sum"
    )


def _is_for_liger(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> bool:
    # A trained head's gradient Liger adds up chunk by chunk in memory, ours is written once. Without a gradient Liger
    # has nothing to spare; it takes no empty input, and a compiled graph holds ours whole.
    return (
        runs_triton(hidden_TH)
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and hidden_TH.requires_grad
        and not weight_VH.requires_grad
        and hidden_TH.shape[0] > 0
        and find_spec("liger_kernel") is not None
    )
