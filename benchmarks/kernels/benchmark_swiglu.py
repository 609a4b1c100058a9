"""SwiGLU of the dense layers, beside silu and a product."""

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Target, forward_and_backward
from seeklet.modeling.kernels.swiglu.op import swiglu

BYTES = "T rows, I columns, bf16: forward 3·2TI (gate, up, output), backward 5·2TI (gradient, gate, up, two gradients)"
FLOPS = "none of matrix products"
TARGET = Target("of the copy", 0.8)


def plain(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up as transformers computes it."""
    return F.silu(gate) * up


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():
        shape = (model.tokens, model.dense)

        def draw(device: torch.device, shape: tuple[int, int] = shape) -> list[torch.Tensor]:
            return [torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2)]

        each = 2 * model.tokens * model.dense
        functions = {"ours": swiglu, "eager": plain, "torch.compile": torch.compile(plain)}
        targets = (TARGET, TARGET) if name in PUBLISHED else (None, None)
        found += forward_and_backward(name, (3 * each, 5 * each), (0, 0), draw, functions, targets)
    return found
