"""A plan's memory beside what training really takes, on this CPU: the check of the one by the other."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..adapter_settings import AdapterSettings
from ..data.settings import DataSettings
from ..lora.attach import attach
from ..losses import use_head_loss
from ..memory import count_bytes
from ..recipe import ModelSettings, MoeSettings, OutputSettings, Recipe
from ..training_model import freeze_unreached, load_for_training, set_losses
from .cluster import make_cluster
from .measure import measure_peak
from .memory import predict_training_bytes
from .request import make_request

ALL_TARGETS = ("attention", "dense_mlp", "shared_experts", "routed_experts")


@dataclass(frozen=True)
class Case:
    """A way to train, in fp32 on a CPU."""

    name: str
    sequences: int
    tokens: int
    adapter: tuple[str, ...] = ()
    """Targets of LoRA; none trains all weights."""
    checkpointing: bool = False
    accumulation: int = 1
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """What the frozen weights are held in; bitsandbytes must be there to measure it."""


def make_recipe(case: Case, config: PreTrainedConfig, folder: Path) -> Recipe:
    """Return the recipe of a case, whose model's config is written to `folder`."""
    config.save_pretrained(folder)
    return Recipe(
        stage="sft",
        model=ModelSettings(path=str(folder), dtype="float32", quantization=case.quantization),
        adapter=AdapterSettings(targets=case.adapter, rank=8) if case.adapter else None,
        moe=MoeSettings(),
        data=DataSettings(train=("none.jsonl",), max_tokens=case.tokens),
        trainer={
            "per_device_train_batch_size": case.sequences,
            "gradient_accumulation_steps": case.accumulation,
            "gradient_checkpointing": case.checkpointing,
            "bf16": False,
        },
        output=OutputSettings(dir="none"),
    )


def predict(recipe: Recipe) -> int:
    """Return the bytes at the peak of a step as the planner has them."""
    found = predict_training_bytes(make_request(recipe, make_cluster("h200", 1)))
    assert found is not None
    return found


def _load(recipe: Recipe, config: PreTrainedConfig) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config)
    if recipe.model.quantization is None:
        return model
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_for_training(replace(recipe.model, path=folder))


def measure(recipe: Recipe, config: PreTrainedConfig) -> int:
    """Return the bytes at the peak of a real step, weights and optimizer states included."""
    model: Any = _load(recipe, config)
    model = use_head_loss(model)
    set_losses(model, recipe.moe)
    if recipe.adapter is not None:
        model = attach(model, recipe.adapter)
    freeze_unreached(model, recipe.moe, recipe.stage)
    given = recipe.trainer
    if given["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    shape = (given["per_device_train_batch_size"], recipe.data.max_tokens)

    def step() -> None:
        for _ in range(given["gradient_accumulation_steps"]):
            ids = torch.randint(0, config.vocab_size, shape)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    there = count_bytes([*model.parameters(), *model.buffers(), *states])
    return there + measure_peak(step)
