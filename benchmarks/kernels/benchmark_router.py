"""The choice of experts and their weights, beside the same from sorts, as transformers routes."""

from typing import Any

import torch

from benchmarks.kernels.case import MODELS, Case, Target, forward_and_backward
from seeklet.modeling.kernels.router import op, reference

BYTES = (
    "T tokens, E experts, K chosen, fp32 logits and weights, int64 indices: forward 4TE + 16TK + 4E (logits, weights, "
    "scores, indices, bias), backward 4TE + 16TK"
)
FLOPS = "none of matrix products"
# experts, groups, open groups, chosen
SHAPES = {"V3": (256, 8, 4, 8), "Moonlight": (64, 1, 1, 6), "nano": (8, 2, 1, 2)}


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, (experts, n_group, topk_group, top_k) in SHAPES.items():
        tokens = MODELS[name].tokens
        settings: dict[str, Any] = {
            "scoring_func": "sigmoid",
            "n_group": n_group,
            "topk_group": topk_group,
            "top_k": top_k,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        }

        def draw(device: torch.device, shape: tuple[int, int] = (tokens, experts)) -> list[torch.Tensor]:
            return [torch.randn(shape, device=device), torch.randn(shape[1], device=device) / 10]

        def weights_of(route: Any, settings: dict[str, Any] = settings) -> Any:
            return lambda logits, bias: route(logits, bias.detach(), **settings)[0]

        chosen = 16 * tokens * top_k
        num_bytes = (4 * tokens * experts + chosen + 4 * experts, 4 * tokens * experts + chosen)
        functions = {
            "ours": weights_of(op.route),
            "eager": weights_of(reference.route),
            "torch.compile": torch.compile(weights_of(reference.route)),
        }
        targets = (Target("µs", 15) if name == "V3" else None, None)
        found += forward_and_backward(name, num_bytes, (0, 0), draw, functions, targets)
    return found
