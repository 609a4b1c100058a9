"""What each process of the two-process distillation test runs."""

import os
from pathlib import Path
from typing import Any

import torch

STEPS = 2
SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def train(folder: Path, world: int) -> dict[str, Any]:
    """Train a student of each kind on four rows a step, shared out to the processes; return weights and logs."""
    # Imported here, so that the environment of a process group is there before accelerate looks.
    from tests.finetune.distill import test_text_trainer, test_topk
    from tests.finetune.distill.caches import write
    from tests.finetune.distill.on_policy import SIZES, build_dense, build_teacher, make_trainer
    from tests.modeling.nano import build_ours

    # The same micro-batches however many processes there are.
    shared: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4 // world,
        "max_steps": STEPS,
    } | SGD

    def build() -> Any:
        return build_ours(**SIZES, num_nextn_predict_layers=1, balance_loss_weight=0.01)

    def say(prompt_ids: list[list[int]], *args: Any) -> list[list[int]]:
        # What a prompt is answered with depends on nothing else; lengths differ.
        return [[prompt[1] % 7 + 9] * (sum(prompt) % 4 + 1) + [2] for prompt in prompt_ids]

    found: dict[str, Any] = {"world": world}
    write(cache := folder / f"cache-{os.environ.get('RANK', 0)}")
    tokenizer = test_text_trainer.student_tokenizer()
    for name in ("seeklet", "dense", "text", "cache"):
        if name == "text":
            student = test_text_trainer.build_student(tokenizer)
            trainer: Any = test_text_trainer.make_trainer(student, tokenizer, folder / name, shared)
        elif name == "cache":
            student = build()
            trainer = test_topk.train(student, folder / name, cache, **shared)
        else:
            student = build() if name == "seeklet" else build_dense()
            trainer = make_trainer(student, build_teacher(), folder / name, shared)
        trainer._generate_single_turn = say
        trainer.train()
        found[name] = {key: tensor.clone() for key, tensor in student.state_dict().items()}
        found[f"{name} log"] = [entry for entry in trainer.state.log_history if "loss" in entry]
    return found


def join_and_train(folder: Path, world: int, rank: int, port: str) -> None:
    """Train as one of `world` processes, and leave what this one has in `folder`."""
    torch.set_num_threads(1)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= group | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.save(train(folder, world), folder / f"rank{rank}-of-{world}.pt")
