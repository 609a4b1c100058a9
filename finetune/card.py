"""A draft of the model card of what a run trained: what is known of it, and nothing of the machine it ran on."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .card_results import describe_results
from .metrics import Entry
from .published import is_local, public_name, without_folders
from .recipe import ModelSettings, TrainingRecipe, as_yaml
from .recipe.yaml_text import write_yaml

PACKAGES = ("seeklet", "transformers", "trl", "peft", "accelerate", "torch", "datasets")
# What a model trained in each stage is found by.
TAGS = {
    "sft": ("sft",),
    "grpo": ("grpo", "reinforcement-learning"),
    "distill": ("distillation", "on-policy-distillation"),
    "distill-topk": ("distillation",),
}
CAPTIONS = {
    "loss": "Loss while training and on held-out conversations",
    "held_out": "Loss on held-out conversations",
    "reward": "Mean reward of the samples",
    "divergence": "Divergence from the teacher",
    "length": "Length of the samples",
    "exploration": "Entropy, and groups whose samples all have the same reward",
    "entropy": "Entropy of the student",
    "mtp_loss": "Loss of multi-token prediction",
    "expert_load": "Load of the fullest expert of each layer",
    "learning_rate": "Learning rate and gradient norm",
    "tokens_per_s": "Speed of training",
}


@dataclass(frozen=True)
class RunFacts:
    """What the card says of a run.

    Attributes:
        recipe: what was asked for.
        entries: of the metrics file.
        data: lines that say what the data was.
        model: lines that say what was trained.
        plots: the figures by name, relative to the card.
        trained: the folder of the result, relative to the card.
        is_seeklet: whether the model is of the DeepSeek-V3 architecture.
    """

    recipe: TrainingRecipe
    entries: Sequence[Entry]
    data: Sequence[str]
    model: Sequence[str]
    plots: Mapping[str, Path]
    trained: Path
    is_seeklet: bool


def make_card(facts: RunFacts) -> ModelCard:
    """Return the draft of the card, for the Hub's own format."""
    recipe = facts.recipe
    is_adapter = recipe.adapter is not None
    base = None if is_local(recipe.model.path) else recipe.model.path
    data = ModelCardData(
        base_model=base,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["seeklet", *TAGS[recipe.stage], "trl", *(["lora"] if is_adapter else [])],
    )
    name = Path(recipe.output.dir).name
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "<!-- A draft. Say here what the model is for, who may use it, and where it fails. -->",
        f"{'A LoRA adapter for' if is_adapter else 'Fine-tuned from'} {base or f'`{Path(recipe.model.path).name}`'}.",
        "## Results\n\n" + describe_results(recipe.stage, facts.entries),
        *([_figures(facts.plots)] if facts.plots else []),
        "## Use\n\n" + _usage(facts, base),
        "## Data\n\n" + _items([*_sources(recipe), *facts.data]),
        "## Training\n\n" + _items([*facts.model, *_training(facts.entries)]),
        "The recipe, defaults included:\n\n```yaml\n" + published_recipe(recipe).rstrip() + "\n```",
        "Versions: " + ", ".join([f"{package} {found}" for package, found in versions().items()]) + ".",
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def published_recipe(recipe: TrainingRecipe) -> str:
    """Return the whole recipe as YAML, each path on this machine cut down to its last part."""
    return write_yaml(without_folders(yaml.safe_load(as_yaml(recipe))))


def versions() -> dict[str, str]:
    """Return the versions of what the run depends on, and of Python."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"Python": platform.python_version()}


def _figures(plots: Mapping[str, Path]) -> str:
    return "\n\n".join(f"![{CAPTIONS[name]}]({path.as_posix()})" for name, path in plots.items())


def _usage(facts: RunFacts, base: str | None) -> str:
    base_name, own = base or "path/to/the/base/model", f"path/to/this/{facts.trained.as_posix()}"
    lines = ["```python"]
    lines += ["import seeklet"] if facts.is_seeklet else []
    if facts.recipe.adapter is not None:
        lines += [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{own}")',
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_name}"), "{own}")',
        ]
    else:
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{own}")',
            f'model = AutoModelForCausalLM.from_pretrained("{own}")',
        ]
    return "\n".join([*lines, "```"])


def _sources(recipe: TrainingRecipe) -> list[str]:
    given: Any = recipe.data if hasattr(recipe, "data") else recipe.prompts  # pyright: ignore
    names = [*map(public_name, given.train), *(f"reasoning-gym's {name}" for name in getattr(given, "gym", ()))]
    held_out = given.validation
    is_share = not isinstance(held_out, tuple)
    where = (f"{held_out:.0%} of it" if held_out else "") if is_share else ", ".join(map(public_name, held_out))
    lines = [f"trained on: {', '.join(names)}; held out: {where or 'nothing'}"]
    if rewards := getattr(recipe, "rewards", ()):
        named = (f"{reward.name or reward.kind} (weight {reward.weight:g})" for reward in rewards)
        lines.append(f"rewards: {', '.join(named)}")
    teacher: ModelSettings | None = getattr(recipe, "teacher", None)
    if teacher is not None:
        lines.append(f"teacher: {public_name(teacher.path)}")
    return lines


def _training(entries: Sequence[Entry]) -> list[str]:
    lines = []
    if seen := [entry["num_tokens"] for entry in entries if "num_tokens" in entry]:
        lines.append(f"{max(entry['step'] for entry in entries):,} optimiser steps over {seen[-1]:,.0f} tokens")
        if seconds := training_seconds(entries):
            lines.append(f"{seconds / 60:.1f} minutes of training, evaluations and checkpoints left out")
    return lines


def training_seconds(entries: Sequence[Entry]) -> float:
    """Return how long the steps took, over all parts of a run that was stopped and went on."""
    seconds, before = 0.0, 0
    for entry in entries:
        if entry.get("tokens_per_s"):
            seconds += (entry["num_tokens"] - before) / entry["tokens_per_s"]
            before = entry["num_tokens"]
    return seconds


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
