"""RMSNorm, alone and of a sum with the residual, each with its kernel hook."""

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn

from .kernels.rms_norm.reference import add_rms_norm, rms_norm


@use_kernel_forward_from_hub("SeekletRMSNorm")
class SeekletRMSNorm(nn.Module):
    """RMSNorm over the last dimension; `weight` (hidden_size,), statistics in fp32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states` (..., hidden_size) normalised, in its own dtype."""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        """Return the weight's shape and epsilon for `print(model)`."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


@use_kernel_forward_from_hub("SeekletAddRMSNorm")
class SeekletAddRMSNorm(SeekletRMSNorm):
    """RMSNorm of the sum with the residual, which a kernel makes in the same pass over memory."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of both (..., hidden_size) normalised, and the sum, which is the next residual."""
        return add_rms_norm(hidden_states, residual, self.weight, self.variance_epsilon)
