"""On-policy distillation of nano models, set up as TRL's and as ours."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DistillationConfig

from seeklet.finetune.distill.on_policy_trainer import SeekletDistillationTrainer
from tests.finetune.characters import VOCABULARY, build_tokenizer
from tests.modeling.nano import build_ours

SIZES: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PROMPTS = [[{"role": "user", "content": text}] for text in ("1+2", "3-4+5", "7", "8+8-1")]
NUM_PROMPT, NUM_COMPLETION = 5, 6


def build_dense(seed: int = 0, **sizes: Any) -> Any:
    """Return a nano Llama over the demo's vocabulary."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**fields | SIZES | sizes)).train()


def build_teacher(**sizes: Any) -> Any:
    """Return a nano DeepSeek-V3-architecture model over the demo's vocabulary."""
    return build_ours(seed=5, **SIZES | sizes).eval()


def make_config(folder: Path, **fields: Any) -> DistillationConfig:
    return DistillationConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_completion_length": NUM_COMPLETION,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
    )


def make_trainer(
    student: Any, teacher: Any, folder: Path, config: dict[str, Any] | None = None, **options: Any
) -> SeekletDistillationTrainer:
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer_class = options.pop("trainer_class", SeekletDistillationTrainer)
    tokenizers = options.pop("tokenizers", (build_tokenizer(), build_tokenizer()))
    return trainer_class(student, teacher, make_config(folder, **config or {}), *tokenizers, data, **options)


def batch(rows: int = 4) -> dict[str, Any]:
    """Return a micro-batch of rows of different lengths, as TRL makes it."""
    generator = torch.Generator().manual_seed(3)
    prompt_lengths = torch.randint(1, NUM_PROMPT, (rows, 1), generator=generator)
    completion_lengths = torch.randint(1, NUM_COMPLETION, (rows, 1), generator=generator)
    prompt_mask = (torch.arange(NUM_PROMPT) >= NUM_PROMPT - prompt_lengths).long()
    completion_mask = (torch.arange(NUM_COMPLETION) < completion_lengths).long()
    draw = [
        torch.randint(3, len(VOCABULARY), mask.shape, generator=generator) for mask in (prompt_mask, completion_mask)
    ]
    return {
        "prompt_ids": draw[0] * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": draw[1] * completion_mask,
        "completion_mask": completion_mask,
        "num_items_in_batch": completion_mask.sum(),
    }
