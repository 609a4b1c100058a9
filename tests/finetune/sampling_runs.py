"""Recipes of stages `rollout`, `reasoning` and `grpo` on a nano model that ends its completions soon."""

import json
from pathlib import Path
from typing import Any

import torch

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import save_adapter
from tests.finetune.characters import VOCABULARY, build_tokenizer
from tests.modeling.nano import build_ours

SIZES: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEMPLATE = (
    "{% for message in messages %}{{ '<｜User｜>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
# Any completion that ended is of 1 to 12 tokens; the shorter half of them counts as right.
REWARD: dict[str, Any] = {"kind": "overlong", "settings": {"max_tokens": 8, "buffer_tokens": 6}}
SAMPLING: dict[str, Any] = {
    "threshold": -0.5,
    "max_new_tokens": 12,
    "batch_size": 8,
    "requires_format": False,
    "requires_reasoning": False,
}


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a nano mixture of experts with multi-token prediction, and its tokenizer without a template."""
    build_ours(**SIZES, num_nextn_predict_layers=1, seed=seed).save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """Write an adapter of the model `write_model` wrote beside it, whose weights are not trivial."""
    model = build_ours(**SIZES, num_nextn_predict_layers=1, seed=seed)
    model.name_or_path = str(folder.parent / "model")
    adapted = attach(model, AdapterSettings(targets=("attention",), rank=4))
    adapted.peft_config["default"].base_model_name_or_path = str(folder.parent / "model")
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(adapted, folder)
    return folder


def write_prompts(file: Path, start: int = 0, number: int = 24) -> Path:
    """Write sums with their answers, and a difficulty by their size."""
    rows = [
        {"question": f"{i}+{i + 1}", "answer": str(2 * i + 1), "difficulty": i % 3}
        for i in range(start, start + number)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_recipe(folder: Path, stage: str = "rollout", **sections: Any) -> Path:
    """Write prompts and a recipe into `folder`, for the model in `folder/model`; its output goes to `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    if not (folder / "model").exists():
        write_model(folder / "model")
    recipe: dict[str, Any] = {
        "stage": stage,
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "prompts": {
            "train": [str(write_prompts(folder / "sums.jsonl"))],
            "chat_template": str(folder / "template.jinja"),
        },
        "rewards": [REWARD],
        "output": {"dir": str(folder / "run")},
    }
    if stage == "rollout":
        recipe["sampling"] = SAMPLING
    else:
        own = {"num_samples": 4, "max_new_tokens": 12, "threshold": -0.5, "batch_size": 16}
        recipe["evaluation"] = own
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / f"{stage}.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
