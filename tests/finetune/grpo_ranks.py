"""What each process of the two-process tests of reinforcement learning runs."""

import os
from pathlib import Path
from typing import Any

import torch

PROMPTS = [[5, 6, 7], [8, 9]]
# Of the nano model nearly everything ends the rows of rank 0 at once, and nothing those of rank 1.
ENDS: list[list[int]] = [list(range(3, 90)), [96]]


def join(folder: Path, rank: int, port: str) -> None:
    """Sample as one of two processes and train as one of two; leave both results in `folder`."""
    from seeklet.finetune.sampling import Sampling, sample
    from tests.finetune.test_grpo_trainer import PROMPTS as QUESTIONS
    from tests.finetune.test_grpo_trainer import SIZES, make_ours
    from tests.modeling.nano import build_ours

    torch.set_num_threads(1)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
    os.environ |= group | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    config = {"per_device_train_batch_size": 8, "seed": 3, "ddp_find_unused_parameters": False}
    policy = build_ours(**SIZES, num_nextn_predict_layers=1)
    trainer = make_ours(policy, folder, config, bias_update_speed=0.01, replays_routing=True)
    assert trainer.accelerator.num_processes == 2 and len(QUESTIONS) == 4
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model = build_ours().eval()
    model.register_forward_hook(count)
    found: dict[str, Any] = {}
    for synced in (True, False):
        torch.manual_seed(7)
        passes = 0
        tokens = sample(model, PROMPTS, 3, Sampling(max_new_tokens=20), ENDS[rank], 0, synced=synced).tokens
        found |= {f"tokens, synced {synced}": tokens, f"passes, synced {synced}": passes}
    trainer.train()
    found["weights"] = dict(policy.state_dict())
    torch.save(found, folder / f"rank{rank}.pt")
