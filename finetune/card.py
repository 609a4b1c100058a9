"""A draft of the model card of what a run trained: what is known of it, and nothing of the machine it ran on."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .metrics import Entry
from .published import is_local, public_name, without_folders
from .recipe import Recipe, as_yaml
from .recipe.yaml_text import write_yaml

PACKAGES = ("seeklet", "transformers", "trl", "peft", "accelerate", "torch", "datasets")
CAPTIONS = {
    "loss": "Loss while training and on held-out conversations",
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

    recipe: Recipe
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
        tags=["seeklet", "sft", "trl", *(["lora"] if is_adapter else [])],
    )
    name = Path(recipe.output.dir).name
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "<!-- A draft. Say here what the model is for, who may use it, and where it fails. -->",
        f"{'A LoRA adapter for' if is_adapter else 'Fine-tuned from'} {base or f'`{Path(recipe.model.path).name}`'}.",
        "## Results\n\n" + _results(facts.entries),
        *([_figures(facts.plots)] if facts.plots else []),
        "## Use\n\n" + _usage(facts, base),
        "## Data\n\n" + _items([*_sources(recipe), *facts.data]),
        "## Training\n\n" + _items([*facts.model, *_training(facts.entries)]),
        "The recipe, defaults included:\n\n```yaml\n" + published_recipe(recipe).rstrip() + "\n```",
        "Versions: " + ", ".join([f"{package} {found}" for package, found in versions().items()]) + ".",
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def published_recipe(recipe: Recipe) -> str:
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


def _results(entries: Sequence[Entry]) -> str:
    held_out = [(entry["step"], entry["eval_loss"]) for entry in entries if entry.get("eval_loss") is not None]
    training = [(entry["step"], entry.get("lm_loss", entry["loss"])) for entry in entries if entry.get("loss")]
    rows = []
    if held_out:
        (first, before), (best, least) = held_out[0], min(held_out, key=lambda pair: pair[1])
        rows.append(("held-out, first", first, before))
        rows.append(("held-out, best", best, least))
    if training:
        rows.append(("training, last", *training[-1]))
    table = ["| loss | step | nats per token | perplexity |", "|---|---:|---:|---:|"]
    table += [f"| {name} | {step:,} | {loss:.4f} | {_perplexity(loss)} |" for name, step, loss in rows]
    return "\n".join(table)


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 20 else "over 10^8"


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


def _sources(recipe: Recipe) -> list[str]:
    held_out = recipe.data.validation
    where = f"{held_out:.0%} of it" if not isinstance(held_out, tuple) else ", ".join(map(public_name, held_out))
    return [f"trained on: {', '.join(map(public_name, recipe.data.train))}; held out: {where}"]


def _training(entries: Sequence[Entry]) -> list[str]:
    lines = []
    if seen := [entry["num_tokens"] for entry in entries if "num_tokens" in entry]:
        lines.append(f"{max(entry['step'] for entry in entries):,} optimiser steps over {seen[-1]:,} tokens")
        lines.append(f"{training_seconds(entries) / 60:.1f} minutes of training, evaluations and checkpoints left out")
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
