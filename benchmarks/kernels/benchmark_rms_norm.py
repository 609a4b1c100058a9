"""RMSNorm of the hidden states with a residual, beside the two operations as transformers has them."""

import torch

from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Target, forward_and_backward
from seeklet.modeling.kernels.rms_norm.op import add_rms_norm

BYTES = "T rows, D columns, bf16: forward 4·2TD + 4T (x, residual, sum, output; 1/rms), backward 4·2TD + 4T"
FLOPS = "none of matrix products"
EPS = 1e-6
TARGET = Target("of the copy", 0.8)


def plain(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed sum and the sum, as transformers' DeepSeek-V3 computes them."""
    total = x + residual
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype), total


def ours(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same from the fused operator."""
    return add_rms_norm(x, residual, weight, EPS)


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():
        shape = (model.tokens, model.hidden)

        def draw(device: torch.device, shape: tuple[int, int] = shape) -> list[torch.Tensor]:
            x, residual = torch.randn((2, *shape), dtype=torch.bfloat16, device=device)
            return [x, residual, torch.rand(shape[1], dtype=torch.bfloat16, device=device)]

        num_bytes = 8 * model.tokens * model.hidden + 4 * model.tokens
        functions = {"ours": ours, "eager": plain, "torch.compile": torch.compile(plain)}
        targets = (TARGET, TARGET) if name in PUBLISHED else (None, None)
        found += forward_and_backward(name, (num_bytes, num_bytes), (0, 0), draw, functions, targets)
    return found
