"""What each process of the two-process training test runs."""

import os
from pathlib import Path
from typing import Any

import torch

STEPS = 3


def train(folder: Path, world: int) -> dict[str, Any]:
    """Train on four rows a step, shared out to the processes; return the weights, the log, and the loads of a step."""
    # Imported here, so that the environment of a process group is there before accelerate looks.
    from seeklet.finetune.balance import RouterBiasCallback
    from tests.finetune.test_sft_trainer import make_rows, make_trainer, mixture, states

    model = mixture()
    trainer = make_trainer(
        model,
        folder,
        make_rows((9, 5, 7, 6, 8, 4, 9, 3, 6, 6, 5, 9)),
        make_rows((9, 3, 5), seed=8),
        max_steps=STEPS,
        # The same micro-batches however many processes there are: of each the balance loss takes a mean.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // world,
        per_device_eval_batch_size=4 // world,
        eval_strategy="steps",
        eval_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS,
    )
    assert isinstance(trainer.callback_handler.callbacks[0], RouterBiasCallback)
    trainer.train()
    trainer.save_trained(folder / "model")
    return {"world": trainer.accelerator.num_processes, "weights": states(model), "log": trainer.state.log_history}


def join_and_train(folder: Path, world: int, rank: int, port: str) -> None:
    """Train as one of `world` processes, and leave what this one has in `folder`."""
    torch.set_num_threads(1)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= group | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.save(train(folder, world), folder / f"rank{rank}-of-{world}.pt")
