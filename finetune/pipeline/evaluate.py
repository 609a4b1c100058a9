"""The evaluation of what a stage trained, and of the model before: done once for each content."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ..errors import DataError
from ..evaluation.models import load_weights
from ..evaluation.reasoning import evaluate_reasoning
from ..evaluation.reasoning_report import JSON
from ..evaluation.reasoning_results import ReasoningReport, read_reasoning_report
from ..published import without_folders
from ..reasoning_stage import read_problems
from ..run import without_bars
from ..sampling_inputs import sampling_errors_told
from .hashes import hash_model
from .inputs import hash_inputs
from .manifest import hash_recipe, plain_recipe
from .settings import BEFORE, Pipeline, Stage


def evaluation_key(pipeline: Pipeline, product_sha256: str) -> str:
    """Return a SHA-256 of all that an evaluation follows from: the model, the problems, how they are tried."""
    assert pipeline.evaluation is not None
    stage = Stage(BEFORE, pipeline.evaluation)
    # Files are told apart by content.
    plain = without_folders({key: value for key, value in plain_recipe(stage).items() if key != "model"})
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


def evaluate_model(
    pipeline: Pipeline, stage: Stage | None, name: str, folder: Path, console: Console
) -> ReasoningReport:
    """Return the figures of what a stage trained, of no stage those of the first model, after writing them.

    Args:
        pipeline: says how models are evaluated.
        stage: what it left is loaded as the next stage would load it.
        name: what reports call it.
        folder: where the figures go.
        console: shows the progress.

    Raises:
        SeekletError: as `evaluate_reasoning`, or the model cannot be loaded.
    """
    recipe = pipeline.evaluation
    assert recipe is not None
    settings = recipe.model
    if stage is not None:
        settings = replace(stage.recipe.model, path=str(stage.product), revision=None, tokenizer=None)
    # In a log file the bars of loading would be lines and lines.
    quiet = nullcontext() if console.is_terminal else without_bars()
    with quiet, sampling_errors_told("evaluation", "; --resume goes on with the evaluation"):
        inputs, problems = read_problems(replace(recipe, model=settings))
        return evaluate_reasoning(
            load_weights(inputs.weights),
            inputs.tokenizer,
            problems,
            inputs.rewards,
            # The tokenizer has the template now.
            replace(recipe.evaluation, chat_template=None),
            name=name,
            folder=folder,
            console=console,
        )
