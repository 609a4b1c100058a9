"""Linear layer with its kernel hook; an nn.Linear to adapters, quantisers and everything else."""

from typing import TypeGuard

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn

from .kernels.linear.reference import linear


@use_kernel_forward_from_hub("SeekletLinear")
class SeekletLinear(nn.Linear):
    """`nn.Linear` whose CPU fp32 products run through oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input @ weight.T + bias` (..., out_features)."""
        return linear(input, self.weight, self.bias)


def has_plain_weight(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether `layer.weight` is the layer's whole matrix and may be read beside its forward.

    Not so behind an adapter, in a quantised or tensor-parallel layer, where a hook brings the weight to the device for
    each call (offloading, several devices), or where there is a bias besides.
    """
    is_plain = type(layer) in (SeekletLinear, nn.Linear) and type(layer.weight) is nn.Parameter
    return is_plain and layer.bias is None and not hasattr(layer, "_hf_hook")
