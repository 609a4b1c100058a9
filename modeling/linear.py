"""Linear layer with its kernel hook; an nn.Linear to adapters, quantisers and everything else."""

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
