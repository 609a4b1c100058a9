"""Folders of nano models as people publish them: weights, tokenizer, template, generation config and a card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.finetune.nano_checkpoints import CHATML, DENSE, build_checkpoint, build_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CARD = """---
license: apache-2.0
---

# A model

Questions: support@acme.example.com.
"""


def build_model(kind: str, folder: Path) -> Path:
    """Write a clean folder of this kind: the name of a recipe's model, or Qwen3, Qwen3-MoE, DeepSeek-small."""
    if kind == "DeepSeek-small":
        build_checkpoint("Moonlight", folder, q_lora_rank=24, n_group=2, num_nextn_predict_layers=1)
    elif kind.startswith("Qwen3"):
        tokenizer = build_tokenizer(CHATML)
        config = {**DENSE, "vocab_size": 640, "head_dim": 8, "eos_token_id": tokenizer.eos_token_id}
        model = (
            Qwen3MoeForCausalLM(
                Qwen3MoeConfig(**config, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
            )
            if "MoE" in kind
            else Qwen3ForCausalLM(Qwen3Config(**config))
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        build_checkpoint(kind, folder)
    if not (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "README.md").write_text(CARD)
    return folder


def copy(folder: Path, to: Path) -> Path:
    """Return a copy of the folder that may be damaged."""
    shutil.copytree(folder, to)
    return to


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what changes a JSON file of a folder in place."""

    def apply(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        change(values)
        (folder / file).write_text(json.dumps(values), encoding="utf-8")

    return apply


def tensors(change: Callable[[dict[str, Any]], Any], metadata: dict[str, str] | None = None) -> Callable[[Path], None]:
    """Return what changes the weights of a folder in place."""

    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(held)
        save_file(held, file, {"format": "pt"} | (metadata or {}))

    return apply


def names(file: Path) -> list[str]:
    """Return the names of the tensors of a file."""
    with safe_open(file, framework="pt") as held:
        return list(held.keys())
