"""The routed experts, trained, beside stock transformers' grouped products."""

from functools import cache
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import MODELS, Case, Model, forward_and_backward
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts

BYTES = (
    "T tokens, K experts a token, S = TK, H hidden, I expert width, E experts, bf16: forward 2·2TH (input, output), "
    "6EIH (weights), 2·2SI (gate and up, kept); backward 3·2TH, 2·2SI, 2·6EIH (weights, their gradients)"
)
FLOPS = "forward 6SIH, backward 12SIH"
# Experts, and how many of them a token takes.
EXPERTS = {"V3": (256, 8), "Moonlight": (64, 6), "nano": (8, 2)}


@cache
def choices(tokens: int, experts: int, top_k: int, device: torch.device) -> torch.Tensor:
    """Return balanced choices (T, K), no expert twice in a row."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices.to(device)


def sizes(name: str, model: Model) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return bytes of tokens (T, H) and of gate and up (S, 2I); and flops of a pass with bytes of the weights."""
    experts, top_k = EXPERTS[name]
    rows = model.tokens * top_k
    products = 6 * rows * model.expert * model.hidden
    weights = 6 * experts * model.expert * model.hidden
    return (2 * model.tokens * model.hidden, 4 * rows * model.expert), (products, weights, top_k)


def stock(x, weights, gate_up_proj, down_proj, indices) -> torch.Tensor:
    """Return the experts' output by transformers' `grouped_mm`."""
    # Slow to import, and not needed for the floors.
    from transformers.integrations.moe import grouped_mm_experts_forward

    def apply_gate(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    layer = SimpleNamespace(
        num_experts=gate_up_proj.shape[0],
        gate_up_proj=gate_up_proj,
        down_proj=down_proj,
        has_gate=True,
        has_bias=False,
        has_post_expert_norm=False,
        is_transposed=False,
        _is_expert_parallel=False,
        _apply_gate=apply_gate,
    )
    return grouped_mm_experts_forward(layer, x, indices, weights)  # pyright: ignore[reportArgumentType]


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():
        experts, top_k = EXPERTS[name]
        shapes = (
            (model.tokens, model.hidden),
            (model.tokens, top_k),
            (experts, 2 * model.expert, model.hidden),
            (experts, model.hidden, model.expert),
        )
        (tokens, hidden), (products, weights, _) = sizes(name, model)

        def draw(device: torch.device, shapes=shapes) -> list[torch.Tensor]:
            return [torch.randn(shape, dtype=torch.bfloat16, device=device).mul_(0.1) for shape in shapes]

        def ours(x, weights, gate_up, down, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            return grouped_experts(x, choices(*routing, x.device), weights, gate_up, down)

        def theirs(x, weights, gate_up, down, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            return stock(x, weights, gate_up, down, choices(*routing, x.device))

        num_bytes = 2 * tokens + hidden + weights, 3 * tokens + hidden + 2 * weights
        functions = {"ours": ours, "transformers, grouped_mm": theirs}
        found += forward_and_backward(name, num_bytes, (products, 2 * products), draw, functions)
    return found
