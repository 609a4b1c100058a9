"""What each process of the two-process test of adapters runs."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.finetune.lora.adapters import ALL, attached, build, loss_and_gradients, tokens

# So many that two rows cannot reach all, nor both processes the same ones.
SIZES = {"n_routed_experts": 32}


def batch_of(rank: int) -> torch.Tensor:
    """Return the tokens of one process."""
    return tokens(1, 4, seed=20 + rank)


def run(rank: int, world: int, folder: str) -> None:
    """Save this process's gradients of two steps as `rank<rank>.pt`; DDP looks for no unused parameters."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    model = DistributedDataParallel(attached(build(torch.float64, **SIZES), *ALL), find_unused_parameters=False)
    # A parameter without a gradient in the first step would be an error in the second.
    gradients = [loss_and_gradients(model, batch_of(rank))[1] for _ in range(2)]
    torch.save(gradients, Path(folder, f"rank{rank}.pt"))
    dist.destroy_process_group()
