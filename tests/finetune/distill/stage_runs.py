"""Recipes of distillation for nano models, and processes that carry them out and may be killed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from seeklet.finetune.distill import teacher_cache, train_on_policy, train_topk
from seeklet.finetune.recipe import DistillRecipe, TopKRecipe, load_recipe
from tests.finetune.nano_checkpoints import build_checkpoint
from tests.finetune.sft_runs import KillAt, start_process, write_data

STUDENT, TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-7B-Instruct"
TRAINER: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "logging_steps": 1,
    "save_steps": 2,
    "eval_steps": 3,
    "eval_strategy": "steps",
    "report_to": "none",
}


def write_recipe(folder: Path, stage: str, kind: str = TEACHER, student: str = STUDENT, **sections: Any) -> Path:
    """Write a student and a teacher of some kinds, data and a recipe for 6 steps into `folder`.

    It writes to `folder/run`. A student of Moonlight's kind has multi-token prediction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_mixture = "Moonlight" in student
    build_checkpoint(student, folder / "model", **{"num_nextn_predict_layers": 1} if is_mixture else {})
    template = "moonlight" if is_mixture else "smollm2"
    build_checkpoint(kind, folder / "teacher", num_hidden_layers=3)
    trainer = TRAINER | ({"max_completion_length": 6} if stage == "distill" else {})
    recipe: dict[str, Any] = {
        "stage": stage,
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "teacher": {"path": str(folder / "teacher"), "dtype": "float32"},
        "trainer": trainer | sections.pop("trainer", {}),
        "output": {"dir": str(folder / "run")},
    }
    if stage == "distill":
        rows = [{"prompt": f"Write letter {i}"} for i in range(12)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe["prompts"] = {
            "train": str(folder / "prompts.jsonl"),
            "validation": 0.3,
            "max_tokens": 64,
            "chat_template": template,
        }
    else:
        recipe["data"] = {
            "train": str(write_data(folder / "data.jsonl")),
            "validation": [str(write_data(folder / "held_out.jsonl", 3))],
            "chat_template": template,
            "max_tokens": 128,
            "on_duplicate": "drop",
            "scan": False,
        }
        recipe["cache"] = {"num_tokens": 8, "rows_per_shard": 4, "batch_size": 2}
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def train_in_this_process(path: Path, resume: bool = False, kill: tuple[str, int] | None = None) -> Any:
    """Train; `kill` says when to die: behind ("step", N), or when the teacher has read ("batch", N)."""
    moment, number = kill or ("never", -1)
    stage = json.loads(path.read_text())["stage"]
    module, recipe_class = (train_on_policy, DistillRecipe) if stage == "distill" else (train_topk, TopKRecipe)
    if moment == "step":
        callback = module.MetricsFile
        # The last callback but the progress: what it logs is on disk.
        module.MetricsFile = lambda file: _Both(callback(file), number)  # pyright: ignore[reportAttributeAccessIssue]
    elif moment == "batch":
        write = teacher_cache.write_topk
        seen = 0

        def write_and_die(*args: Any, **kwargs: Any) -> Any:
            def count(_: int) -> None:
                nonlocal seen
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            return write(*args, **kwargs | {"on_tokens": count})

        teacher_cache.write_topk = write_and_die  # pyright: ignore[reportPrivateImportUsage]
    recipe: Any = load_recipe(path, (), recipe_class)
    return module.train(recipe, resume=resume)


class _Both(KillAt):
    """The metrics file, and death behind a step."""

    def __init__(self, metrics: Any, step: int):
        super().__init__(step)
        self._metrics = metrics

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Write."""
        self._metrics.on_log(*args, **kwargs)


def run(path: Path, resume: bool = False, kill: tuple[str, int] | None = None) -> None:
    """Train in a process until it is done, or until it has killed itself."""
    process = start_process(train_in_this_process, path, resume, kill)
    process.join()
    assert process.exitcode == (0 if kill is None else -signal.SIGKILL)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return what was logged, without what takes time and memory."""
    measured = ("step_time", "memory_gib", "tokens_per_s", "runtime", "per_second")
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in entry.items() if not key.endswith(measured)}
        for entry in entries
        if "train_runtime" not in entry
    ]
