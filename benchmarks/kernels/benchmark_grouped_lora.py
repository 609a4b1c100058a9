"""Frozen routed experts with low-rank terms of rank 16, beside the same experts without."""

from functools import cache

import torch

from benchmarks.kernels.benchmark_grouped_experts import EXPERTS, choices, sizes
from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Target, forward_and_backward
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from seeklet.modeling.kernels.grouped_lora.op import LowRank, grouped_lora

RANK = 16
BASE = "the experts without low-rank terms"
BYTES = (
    "T tokens, K experts a token, S = TK, H hidden, I expert width, E experts, r rank, bf16: forward 2·2TH, 6EIH "
    "(frozen weights), 2·2SI, 2Er(2H + 3I) (factors), 2·4Sr (what A makes, fp32); backward 3·2TH, 2·2SI, 6EIH, "
    "2·2Er(2H + 3I), 2·2·4Sr"
)
FLOPS = "forward 6SIH + 2Sr(2H + 3I), backward 6SIH + 4Sr(2H + 3I)"


@cache
def _projections(experts: int, hidden: int, width: int, device: torch.device) -> list[torch.Tensor]:
    shapes = (experts, 2 * width, hidden), (experts, hidden, width)
    return [torch.randn(shape, dtype=torch.bfloat16, device=device).mul_(0.1) for shape in shapes]


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():
        experts, top_k = EXPERTS[name]
        each = experts * RANK
        shapes = (
            (model.tokens, model.hidden),
            (model.tokens, top_k),
            (each, model.hidden),
            (2 * model.expert, each),
            (each, model.expert),
            (model.hidden, each),
        )
        (tokens, hidden), (products, weights, _) = sizes(name, model)
        around = 2 * model.hidden + 3 * model.expert
        factors, lows = 2 * each * around, 8 * model.tokens * top_k * RANK
        low_products = 2 * model.tokens * top_k * RANK * around

        def draw(device: torch.device, shapes=shapes) -> list[torch.Tensor]:
            return [torch.randn(shape, dtype=torch.bfloat16, device=device).mul_(0.1) for shape in shapes]

        def ours(x, w, a, b, c, d, model=model, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            frozen = _projections(routing[1], model.hidden, model.expert, x.device)
            low_rank = LowRank(a, b, 2.0), LowRank(c, d, 2.0)
            return grouped_lora(x, choices(*routing, x.device), w, frozen[0], frozen[1], *low_rank)

        def without(x, w, *_, model=model, routing=(model.tokens, experts, top_k)) -> torch.Tensor:
            frozen = _projections(routing[1], model.hidden, model.expert, x.device)
            return grouped_experts(x, choices(*routing, x.device), w, frozen[0], frozen[1])

        num_bytes = (
            2 * tokens + hidden + weights + factors + lows,
            3 * tokens + hidden + weights + 2 * factors + 2 * lows,
        )
        num_flops = products + low_products, products + 2 * low_products
        functions = {"ours": ours, BASE: without}
        targets = (Target("times the time", 1.08, BASE) if name in PUBLISHED else None, None)
        found += forward_and_backward(name, num_bytes, num_flops, draw, functions, targets)
    return found
