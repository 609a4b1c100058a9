"""Log-probabilities and entropies of the output head, beside those of all logits and of chunks of them."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.case import MODELS, Case, forward_and_backward
from seeklet.modeling.kernels.linear_log_probs import op, reference

BYTES = (
    "T tokens, H hidden, V vocabulary, bf16: forward 2TH + 2VH + 8T + 12T (states, head, targets, three fp32 numbers), "
    "backward twice the former two, 8T + 20T"
)
FLOPS = "forward 2THV; backward 6THV: the logits again, and two gradients"
VOCABULARY = {"V3": 129_280, "Moonlight": 163_840, "nano": 122}


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both of all logits in fp32."""
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), reference.entropy_of(log_p)


def draw_head(device: torch.device, name: str) -> list[torch.Tensor]:
    """Return hidden states and head of a model."""
    tokens, hidden = MODELS[name].tokens, MODELS[name].hidden
    states = torch.randn(tokens, hidden, dtype=torch.bfloat16, device=device)
    weight = torch.randn(VOCABULARY[name], hidden, device=device).div_(hidden**0.5).bfloat16()
    return [states, weight]


def targets_of(device: torch.device, name: str) -> torch.Tensor:
    """Return a target for each token of a model, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY[name], (MODELS[name].tokens,), generator=generator).to(device)


def _with_targets(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    drawn: dict[torch.device, torch.Tensor] = {}

    def run(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        if hidden.device not in drawn:
            drawn[hidden.device] = targets_of(hidden.device, name)
        return function(hidden, weight, drawn[hidden.device])

    return run


def cases() -> list[Case]:
    """Return forward and backward of each model."""
    found = []
    for name, model in MODELS.items():

        def draw(device: torch.device, name: str = name) -> list[torch.Tensor]:
            return draw_head(device, name)

        tensors = 2 * model.hidden * (model.tokens + VOCABULARY[name])
        product = 2 * model.tokens * model.hidden * VOCABULARY[name]
        num_bytes = (tensors + 20 * model.tokens, 2 * tensors + 28 * model.tokens)
        ways = {"ours": op.linear_log_probs, "chunks": reference.linear_log_probs, "all logits": plain}
        functions = {label: _with_targets(way, name) for label, way in ways.items()}
        found += forward_and_backward(name, num_bytes, (product, 3 * product), draw, functions)
    return found
