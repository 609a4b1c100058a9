"""What each process of the multi-process load-balance test runs."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.modeling.nano import build_ours, draw_tokens, padding_mask

SPEED = 0.01
STEPS = 3


def batch_of_step(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return four rows of tokens and their mask: the whole of a step, which the ranks share out."""
    return draw_tokens(4, 9, seed=10 + step), padding_mask((9, 4, 7, 9), 9, "left")


def run(rank: int, world: int, folder: str) -> None:
    """Train on this rank's rows, as they are and under DistributedDataParallel, and save what came of each step.

    `rank<rank>.pt` in `folder` then holds, for each of the two, a list of (loads, biases).
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    results = []
    for wrap in (None, DistributedDataParallel):
        model = build_ours(bias_update_speed=SPEED)
        forward = model if wrap is None else wrap(model)
        steps = []
        for step in range(STEPS):
            tokens, mask = (tensor.chunk(world)[rank] for tensor in batch_of_step(step))
            forward(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss.backward()
            loads = model.update_router_bias()
            biases = [b.clone() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
            steps.append((loads, biases))
        results.append(steps)
    torch.save(results, Path(folder, f"rank{rank}.pt"))
    dist.destroy_process_group()
