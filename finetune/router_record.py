"""What routers choose in rollout and in training, set beside each other: a changed choice destabilises RL of mixtures.

See rollout routing replay, arXiv 2510.11370.
"""

# L layers that route, B rows, S tokens, E experts, K experts chosen per token

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from seeklet.modeling.kernels.router.reference import choose_experts, expert_scores
from seeklet.modeling.moe import SeekletRouter

from .atomic_files import replaced_file

# The rows of a batch whose logits are kept: of V3, 60 KB a token.
NUM_ROWS = 4


def share_of_changed_routes(
    model: nn.Module, router_logits: Sequence[torch.Tensor], choice: torch.Tensor
) -> torch.Tensor:
    """Return the share of recorded experts that the routers of `model` do not choose themselves: a scalar.

    Args:
        router_logits: of each main layer that routes, (B*S, E).
        choice: the recorded experts (B, S, L, K), -1 where nothing was recorded.
    """
    changed = recorded = choice.new_zeros((), dtype=torch.int64)
    # Those of multi-token prediction modules come last, and were not recorded.
    routers = [module for module in model.modules() if isinstance(module, SeekletRouter)][: len(router_logits)]
    for router, logits, chosen in zip(routers, router_logits, choice.flatten(0, 1).unbind(1), strict=True):
        routing = router.routing
        own = choose_experts(
            expert_scores(logits.detach(), routing["scoring_func"]),
            router.e_score_correction_bias,
            routing["n_group"],
            routing["topk_group"],
            routing["top_k"],
        )
        there = chosen >= 0
        kept = (chosen[:, :, None] == own[:, None, :]).any(-1)
        changed = changed + (there & ~kept).sum()
        recorded = recorded + there.sum()
    return changed / recorded.clamp(min=1)


def write_router_logits(
    target: Path,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    router_logits: Sequence[torch.Tensor],
    choice: torch.Tensor,
) -> None:
    """Write a safetensors file of the first rows.

    It holds `tokens` and `mask` (B, S), `router_logits` (L, B, S, E) and `expert_choice` (B, S, L, K).
    """
    logits = torch.stack([layer.detach().unflatten(0, tokens.shape)[:NUM_ROWS].cpu() for layer in router_logits])
    tensors = {
        "tokens": tokens[:NUM_ROWS],
        "mask": mask[:NUM_ROWS],
        "router_logits": logits,
        "expert_choice": choice[:NUM_ROWS],
    }
    target.parent.mkdir(exist_ok=True)
    with replaced_file(target) as path:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
