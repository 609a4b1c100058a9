"""The evaluation of what a stage trained, and of the model before: done once for each content."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import DataError
from ..evaluation.models import is_adapter, load_model, load_tokenizer
from ..evaluation.reasoning import evaluate_reasoning
from ..evaluation.reasoning_report import JSON
from ..evaluation.reasoning_results import ReasoningReport, read_reasoning_report
from ..lora.files import load_adapter
from ..prompts.read import read_prompts
from ..recipe import ModelSettings, ReasoningRecipe
from ..rewards import RewardSet
from ..run import without_bars
from .hashes import hash_model
from .inputs import hash_inputs
from .manifest import hash_recipe, plain_recipe
from .settings import BEFORE, Pipeline, Stage


def evaluation_key(pipeline: Pipeline, product_sha256: str) -> str:
    """Return a SHA-256 of all that an evaluation follows from: the model, the problems, how they are tried."""
    assert pipeline.evaluation is not None
    stage = Stage(BEFORE, pipeline.evaluation)
    plain: Mapping[str, Any] = {key: value for key, value in plain_recipe(stage).items() if key != "model"}
    problems = {key: each.get("sha256") for key, each in hash_inputs(stage, {}).items() if not key.startswith("model")}
    return hash_recipe({"product": product_sha256, "recipe": plain, "problems": problems})


def first_model_sha256(pipeline: Pipeline) -> str:
    """Return a SHA-256 of the model before the first stage; of one on the Hub, of its name.

    Raises:
        OSError: it cannot be read.
    """
    model = pipeline.stages[0].recipe.model
    folder = Path(model.path).expanduser()
    return hash_model(folder) if folder.is_dir() else hash_recipe({"path": model.path, "revision": model.revision})


def read_evaluation(folder: Path) -> ReasoningReport | None:
    """Return the report in a folder, or None where there is none that can be read."""
    try:
        return read_reasoning_report(folder / JSON)
    except (OSError, DataError, json.JSONDecodeError):
        return None


def evaluate_first_model(pipeline: Pipeline, folder: Path, console: Console) -> ReasoningReport:
    """Return the figures of the model before the first stage, after writing them into `folder`.

    Raises:
        SeekletError: as `evaluate_reasoning`, or the model cannot be loaded.
    """
    assert pipeline.evaluation is not None
    settings = pipeline.stages[0].recipe.model
    with _quiet(console):
        return _evaluate(pipeline.evaluation, load_model(settings), settings, BEFORE, folder, console)


def evaluate_stage(pipeline: Pipeline, stage: Stage, folder: Path, console: Console) -> ReasoningReport:
    """Return the figures of what a stage trained, after writing them into `folder`.

    Raises:
        SeekletError: as `evaluate_reasoning`, or the model cannot be loaded.
    """
    assert pipeline.evaluation is not None
    base, product = stage.recipe.model, stage.product
    with _quiet(console):
        if is_adapter(product):
            model: Any = load_adapter(load_model(base), product).eval()
            # Saved beside the adapter, with the template that it was trained with.
            has_own = (product / "tokenizer_config.json").is_file()
            settings = replace(base, tokenizer=str(product)) if has_own else base
        else:
            # As the next stage loads it: block-fp8 that was kept stays so.
            settings = replace(base, path=str(product), revision=None, tokenizer=None)
            model = load_model(settings)
        return _evaluate(pipeline.evaluation, model, settings, stage.name, folder, console)


def _quiet(console: Console) -> AbstractContextManager[None]:
    # In a log file the bars of loading would be lines and lines.
    return nullcontext() if console.is_terminal else without_bars()


def _evaluate(
    recipe: ReasoningRecipe, model: Any, settings: ModelSettings, name: str, folder: Path, console: Console
) -> ReasoningReport:
    prompts, evaluation = recipe.prompts, recipe.evaluation
    problems, _ = read_prompts(prompts)
    if evaluation.chat_template is None and prompts.chat_template is not None:
        evaluation = replace(evaluation, chat_template=prompts.chat_template)
    return evaluate_reasoning(
        model,
        load_tokenizer(settings),
        problems,
        RewardSet(recipe.rewards),
        evaluation,
        name=name,
        folder=folder,
        console=console,
    )
