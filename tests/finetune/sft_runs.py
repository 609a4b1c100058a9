"""Runs of `sft.train` on nano models, here or in processes of their own that may be killed."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from seeklet.finetune.recipe import Recipe, load_recipe
from tests.finetune.nano_checkpoints import build_checkpoint

MODEL = "moonshotai/Moonlight-16B-A3B"
TOPICS = ("parcel", "invoice", "refund", "password", "address", "voucher", "delivery", "account", "order", "size")
MEASURED = ("tokens_per_s", "memory_gib", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def write_data(file: Path, num_rows: int = 14) -> Path:
    """Write conversations of different lengths."""
    rows = []
    for i in range(num_rows):
        topic = TOPICS[i % len(TOPICS)]
        question = f"Where is my {topic} number {i}?" + " It is late." * (i % 4)
        answer = f"Your {topic} {i} is on its way." + f" It comes on day {i}." * (i % 3)
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        rows.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def write_recipe(folder: Path, architecture: str = MODEL, sizes: dict[str, Any] | None = None, **sections: Any) -> Path:
    """Write a nano model, data and a recipe for them into `folder`; its output goes to `folder/run`.

    By default a mixture of experts with multi-token prediction and dropout, trained whole for 6 steps of 2 batches,
    with a checkpoint and an evaluation every 2 steps; an epoch is 3 steps and a half, rounded up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own: dict[str, Any] = {"num_nextn_predict_layers": 1, "attention_dropout": 0.1} if architecture == MODEL else {}
    build_checkpoint(architecture, folder / "model", **own | (sizes or {}))
    trainer = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "use_cpu": True,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "report_to": "none",
        "seed": 3,
    }
    recipe = {
        "stage": "sft",
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {
            "train": str(write_data(folder / "data.jsonl")),
            "validation": [str(write_data(folder / "held_out.jsonl", 3))],
            "chat_template": "moonlight" if architecture == MODEL else "smollm2",
            "max_tokens": 128,
            "on_duplicate": "drop",
            "scan": False,
        },
        "moe": {"bias_update_speed": 0.01} if architecture == MODEL else {},
        "trainer": trainer | sections.pop("trainer", {}),
        "output": {"dir": str(folder / "run"), "plots": False},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


class KillAt(TrainerCallback):
    """Kills its own process when a step is done."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Die."""
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_in_this_process(recipe: Path | Recipe, resume: bool = False, kill: tuple[str, int] | None = None) -> Any:
    """Train; `kill` says when to die: ("step", N), in the middle of ("save", N), or of the first ("delete", _)."""
    from seeklet.finetune import checkpoints, sft, sft_trainer

    torch.set_num_threads(1)
    # The server's lock is shared by all its processes: one killed with it in its hand would stop the others for good.
    tqdm.set_lock(threading.RLock())
    moment, step = kill or ("never", -1)
    trainer_class: Any = sft_trainer.SeekletSFTTrainer

    class Killed(trainer_class):
        def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any):
            extra = [KillAt(step)] if moment == "step" else []
            super().__init__(*args, callbacks=[*callbacks, *extra], **kwargs)

        def _save_scaler(self, output_dir: str) -> None:
            # Model and optimizer are written, random state and Trainer's own are not.
            if moment == "save" and self.state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_scaler(output_dir)

    def die_deleting(checkpoint: Path) -> None:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.deleted-00000000"))
        os.kill(os.getpid(), signal.SIGKILL)

    sft.SeekletSFTTrainer = Killed  # pyright: ignore[reportPrivateImportUsage]
    if moment == "delete":
        checkpoints.delete_checkpoint = die_deleting
    return sft.train(load_recipe(recipe) if isinstance(recipe, Path) else recipe, resume=resume)


def start_process(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Return a process that runs the function. Its imports are done once for all such processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seeklet.finetune.sft", __name__])
    process = context.Process(target=function, args=args)
    process.start()
    return process


def start(recipe: Path, resume: bool = False, kill: tuple[str, int] | None = None) -> BaseProcess:
    """Return a process that trains."""
    return start_process(train_in_this_process, recipe, resume, kill)


def run(recipe: Path, resume: bool = False, kill: tuple[str, int] | None = None) -> None:
    """Train in a process until it is done, or until it has killed itself."""
    process = start(recipe, resume, kill)
    process.join()
    assert process.exitcode == (0 if kill is None else -signal.SIGKILL)


def plain_entries(metrics: Path) -> list[dict[str, Any]]:
    """Return what was logged, without times and memory."""
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name not in MEASURED}
        for entry in entries
        if "train_runtime" not in entry
    ]
