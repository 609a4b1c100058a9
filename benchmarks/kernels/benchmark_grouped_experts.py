"""The routed experts, trained, beside stock transformers' grouped products."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import (
    MODELS,
    PUBLISHED,
    Case,
    Kept,
    Model,
    Target,
    forward_and_backward,
    whole_step,
)
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


STOCK = "transformers, grouped_mm"
TARGETS = Target("TFLOP/s", 450), Target("TFLOP/s", 430)


def stock(x, weights, gate_up_proj, down_proj, indices) -> torch.Tensor:
    """Return the experts' output by transformers' `grouped_mm`: `F.grouped_mm` of sorted copies of the tokens."""
    # Slow to import, and not needed for the floors.
    from transformers.integrations.moe import grouped_mm_experts_forward

    return grouped_mm_experts_forward(_layer(gate_up_proj, down_proj), x, indices, weights)


def stock_eager(x, weights, gate_up_proj, down_proj, indices) -> torch.Tensor:
    """Return the same by transformers' loop over the experts."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

    # Beneath the decorator that chooses among transformers' implementations.
    forward: Any = DeepseekV3Experts.forward
    return forward.__wrapped__(_layer(gate_up_proj, down_proj), x, indices, weights)


def _layer(gate_up_proj: torch.Tensor, down_proj: torch.Tensor) -> Any:
    """Return what transformers' functions read of a layer."""

    def apply_gate(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return SimpleNamespace(
        num_experts=gate_up_proj.shape[0],
        gate_up_proj=gate_up_proj,
        down_proj=down_proj,
        has_gate=True,
        has_bias=False,
        has_post_expert_norm=False,
        is_transposed=False,
        _is_expert_parallel=False,
        _apply_gate=apply_gate,
        act_fn=F.silu,
    )


def _draw(model: Model, experts: int, top_k: int, device: torch.device) -> list[torch.Tensor]:
    shapes = (
        (model.tokens, model.hidden),
        (model.tokens, top_k),
        (experts, 2 * model.expert, model.hidden),
        (experts, model.hidden, model.expert),
    )
    return [torch.randn(shape, dtype=torch.bfloat16, device=device).mul_(0.1) for shape in shapes]


def cases() -> list[Case]:
    """Return forward, backward, and both in one of each model."""
    found = []
    for name, model in MODELS.items():
        experts, top_k = EXPERTS[name]
        (tokens, hidden), (products, weights, _) = sizes(name, model)

        def draw(device: torch.device, model=model, experts=experts, top_k=top_k) -> list[torch.Tensor]:
            return _draw(model, experts, top_k, device)

        def ours(x, weights, gate_up, down, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            return grouped_experts(x, choices(*routing, x.device), weights, gate_up, down)

        def theirs(x, weights, gate_up, down, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            return stock(x, weights, gate_up, down, choices(*routing, x.device))

        num_bytes = 2 * tokens + hidden + weights, 3 * tokens + hidden + 2 * weights
        functions = {"ours": ours, STOCK: theirs, "torch.compile, grouped_mm": torch.compile(theirs)}

        def eager(x, weights, gate_up, down, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            return stock_eager(x, weights, gate_up, down, choices(*routing, x.device))

        functions["transformers, eager"] = eager
        targets = TARGETS if name in PUBLISHED else (None, None)
        found += forward_and_backward(name, num_bytes, (products, 2 * products), draw, functions, targets)
        target = Target("times as fast", 1.5, STOCK) if name in PUBLISHED else None
        found.append(whole_step(name, sum(num_bytes), 3 * products, draw, functions, target))
    return found


def kept() -> list[Kept]:
    """Return what is kept for backward of each model: at the least the input, gate and up, and the routing."""
    found = []
    for name, model in MODELS.items():
        (tokens, hidden), _ = sizes(name, model)
        # bf16 weights and int64 indices.
        minimal = tokens + hidden + 10 * model.tokens * EXPERTS[name][1]

        def call(device: torch.device, name: str = name):
            model, (experts, top_k) = MODELS[name], EXPERTS[name]
            drawn = _draw(model, experts, top_k, device)
            x, weights, gate_up, down = (tensor.requires_grad_() for tensor in drawn)
            indices = choices(model.tokens, experts, top_k, device)
            return (lambda: grouped_experts(x, indices, weights, gate_up, down)), [gate_up, down]

        found.append(Kept(f"kept, {name}", minimal, call, 1.15))
    return found
