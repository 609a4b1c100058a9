"""A nano pipeline in a folder: cold start and reinforcement learning on a mixture of experts; in processes to kill."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.finetune.nano_checkpoints import build_checkpoint
from tests.finetune.sft_runs import write_data

MODEL = "moonshotai/Moonlight-16B-A3B"
TRAINER: dict[str, Any] = {
    "max_steps": 3,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "logging_steps": 1,
    "save_steps": 1,
    "report_to": "none",
}


def reward_of_letters(completion: str, row: dict[str, Any]) -> float:
    """Return the share of the letter that the row names."""
    return completion.count(row["letter"]) / max(1, len(completion))


def stages(folder: Path) -> dict[str, Any]:
    """Return a cold start with an adapter that is merged, and reinforcement learning of all weights."""
    return {
        "cold": {
            "stage": "sft",
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "data": {
                "train": str(folder / "data.jsonl"),
                "validation": 0.0,
                "chat_template": "moonlight",
                "max_tokens": 128,
                "on_duplicate": "drop",
                "scan": False,
            },
            "adapter": {"targets": ["attention"], "rank": 2},
            "trainer": {**TRAINER, "per_device_train_batch_size": 2},
            "output": {"merge": True},
        },
        "grpo": {
            "stage": "grpo",
            "model": {"path": "{cold}", "dtype": "float32"},
            "prompts": {"train": str(folder / "prompts.jsonl"), "max_tokens": 64, "chat_template": "moonlight"},
            "rewards": [{"kind": "own", "settings": {"function": f"{__name__}:reward_of_letters"}}],
            "trainer": {
                **TRAINER,
                "per_device_train_batch_size": 4,
                "num_generations": 2,
                "max_completion_length": 8,
            },
        },
    }


def evaluation(folder: Path) -> dict[str, Any]:
    """Return the section of an evaluation at two problems."""
    return {
        "prompts": {"train": str(folder / "problems.jsonl"), "chat_template": "moonlight"},
        "rewards": [{"kind": "exact"}],
        "num_samples": 2,
        "max_new_tokens": 4,
    }


def write_pipeline(folder: Path, **sections: Any) -> Path:
    """Write model, data and a pipeline of two stages into `folder`; its output goes to `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_checkpoint(MODEL, folder / "model")
    write_data(folder / "data.jsonl", 8)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Write letter {i}", "letter": "e"} for i in range(6)])
    write_rows(folder / "problems.jsonl", [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(2)])
    pipeline = {"output": {"dir": str(folder / "run")}, "stages": stages(folder), **sections}
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps(pipeline, indent=1), encoding="utf-8")
    return path


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def weights(folder: Path) -> dict[str, Any]:
    """Return all tensors in a folder."""
    return {f"{file.name}/{name}": v for file in folder.glob("*.safetensors") for name, v in load_file(file).items()}
