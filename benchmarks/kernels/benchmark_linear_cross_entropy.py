"""Cross entropy of the output head with its gradients, beside that of all logits, of chunks of them, Liger's and CCE's.

Of Cut Cross-Entropy it is "cce_exact": its default leaves out small gradients, and computes another thing.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.kernels.benchmark_linear_log_probs import VOCABULARY, draw_head, targets_of
from benchmarks.kernels.case import MODELS, Case, Runs, is_installed
from seeklet.modeling.kernels.linear_cross_entropy import op, reference

BYTES = "T tokens, H hidden, V vocabulary, bf16: 4TH + 8T + 2VH, and 2VH more where the head is trained"
FLOPS = "6THV, 4THV where the head is frozen, of a way that keeps logits; ours makes them twice: 8THV and 6THV"


PEERS = {"Liger": "liger_kernel", "CCE, exact": "cut_cross_entropy"}


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed cross entropy of all logits in fp32."""
    return F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")


def functions() -> dict[str, Callable[..., torch.Tensor]]:
    """Return what is compared, with the peers that are installed."""
    found = {"ours": op.linear_cross_entropy, "chunks": reference.linear_cross_entropy, "all logits": plain}
    if is_installed(PEERS["Liger"]):
        liger = importlib.import_module("liger_kernel.transformers.functional")
        found["Liger"] = lambda *inputs: liger.liger_fused_linear_cross_entropy(*inputs, reduction="sum")
    if is_installed(PEERS["CCE, exact"]):
        cce = importlib.import_module("cut_cross_entropy")
        found["CCE, exact"] = lambda *inputs: cce.linear_cross_entropy(*inputs, reduction="sum", impl="cce_exact")
    return found


def cases() -> list[Case]:
    """Return forward and backward together, with the head trained and frozen, of each model."""
    found = []
    for name, model in MODELS.items():
        for trained in (True, False):

            def runs(device: torch.device, name: str = name, trained: bool = trained) -> Runs:
                hidden, weight = draw_head(device, name)
                targets = targets_of(device, name)
                leaves = [hidden.requires_grad_(), *([weight.requires_grad_()] if trained else [])]

                def step(function: Callable[..., torch.Tensor]) -> Callable[[], Any]:
                    return lambda: torch.autograd.grad(function(hidden, weight, targets), leaves)

                return {label: step(function) for label, function in functions().items()}

            head = 2 * model.hidden * VOCABULARY[name]
            num_bytes = 4 * model.tokens * model.hidden + 8 * model.tokens + head * (2 if trained else 1)
            flops = (3 if trained else 2) * head * model.tokens
            found.append(Case(f"head {'trained' if trained else 'frozen'}, {name}", num_bytes, flops, runs))
    return found
