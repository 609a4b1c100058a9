"""How well the model of a recipe reasons: alone, or before and after training; a report in `output.dir`."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .errors import RecipeError
from .evaluation.models import (
    Weights,
    check_one_process,
    check_trained,
    find_trained,
    find_weights,
    has_tokenizer,
    is_adapter,
    load_tokenizer,
    load_weights,
)
from .evaluation.reasoning import evaluate_reasoning
from .evaluation.reasoning_report import MARKDOWN, STAGES_MARKDOWN, summary_table, write_reasoning_report, write_stages
from .evaluation.reasoning_results import ReasoningReport
from .prompts.prepare import set_template
from .prompts.read import Prompt
from .published import public_name
from .recipe import GrpoRecipe, ReasoningRecipe
from .run import without_bars
from .sampling_inputs import SamplingInputs, check_attempts, read_inputs, sampling_errors_told, say
from .training_model import check_drafts

BEFORE, AFTER = "before", "after"


def run_reasoning(recipe: ReasoningRecipe, *, resume: bool = False, console: Console | None = None) -> ReasoningReport:
    """Return how well the recipe's model reasons; see `evaluate_recipe`.

    It is of the form that stages have; there is nothing between its beginning and its end to `resume` from.
    """
    del resume
    return evaluate_recipe(recipe, console=console)


def evaluate_recipe(
    recipe: ReasoningRecipe | GrpoRecipe,
    *,
    after: Path | None = None,
    before_only: bool = False,
    out: Path | None = None,
    console: Console | None = None,
) -> ReasoningReport:
    """Return how well the model that was measured last reasons.

    Of stage `reasoning` that is `model.path`, on what `prompts.validation` holds out, or on all prompts where it holds
    out nothing; `reasoning.md`, `.json` and `.png` go to `out`, or else to `output.dir`. With `after`, the folder of an
    adapter or model, that is measured beside it: each has a folder there, `before/` and `after/`, and `stages.md`,
    `.json` and `.png` show both. Of stage `grpo` it is both, unless `before_only`: `after` is what training left.

    Raises:
        RecipeError: there is nothing trained, or the recipe cannot be carried out.
        DataError: the problems cannot be used, or none is held out to measure training on.
        CheckpointError: a model's files are damaged.
        AdapterError: an adapter cannot be used.
        TrainingError: memory was full, or too many attempts could not be scored.
        OSError: the report cannot be written.
    """
    check_one_process()
    console = console or Console(highlight=False)
    output = Path(recipe.output.dir).expanduser()
    folder = out or output
    if isinstance(recipe, GrpoRecipe) and not before_only:
        after = after or find_trained(output)
    if after is not None:
        check_trained(after)
    inputs, problems = read_problems(recipe)
    say(console, f"{len(problems):,} problems, {recipe.evaluation.num_samples} attempts at each")
    # In a log file the bars of loading would be lines and lines.
    quiet = nullcontext() if console.is_terminal else without_bars()
    with sampling_errors_told("evaluation", ""), quiet:
        if after is None:
            name = public_name(recipe.model.path)
            reports = [_measure(recipe, inputs, inputs.weights, problems, name, console)]
        else:
            reports = _measure_both(recipe, inputs, problems, after, console)
    if after is None:
        write_reasoning_report(reports[0], folder)
    else:
        for name, report in zip((BEFORE, AFTER), reports, strict=True):
            write_reasoning_report(report, folder / name)
        write_stages(reports, folder)
    console.print(summary_table(reports))
    say(console, f"Report: {folder / (MARKDOWN if after is None else STAGES_MARKDOWN)}")
    return reports[-1]


def read_problems(recipe: ReasoningRecipe | GrpoRecipe) -> tuple[SamplingInputs, list[Prompt]]:
    """Return what an evaluation begins with, and its problems, after all checks that need no model.

    Raises:
        RecipeError: the adapter's base, a tokenizer or a reward is not to be had, or none tells what is right.
        AdapterError: the adapter cannot be read.
        DataError: the problems cannot be used.
    """
    if isinstance(recipe, GrpoRecipe) and not recipe.prompts.validation:
        raise RecipeError(
            "prompts.validation: nothing is held out, so there is nothing to evaluate on; allowed: files, or a share"
        )
    settings = recipe.evaluation
    inputs = read_inputs(recipe.model, recipe.prompts, recipe.rewards, settings.chat_template, leave_out_long=True)
    check_attempts(inputs, settings, "evaluation")
    return inputs, inputs.held_out or inputs.prompts


def _measure_both(
    recipe: ReasoningRecipe | GrpoRecipe,
    inputs: SamplingInputs,
    problems: Sequence[Prompt],
    after: Path,
    console: Console,
) -> list[ReasoningReport]:
    """Return the report of the recipe's model and that of another; one is let go of before the next is loaded."""
    reports = []
    for moment, weights in ((BEFORE, inputs.weights), (AFTER, _weights_after(inputs.weights, after))):
        path = str(after) if moment == AFTER else recipe.model.path
        say(console, f"{moment.capitalize()}: {path}")
        if moment == AFTER and has_tokenizer(after):
            # Another model than the recipe's may have another.
            tokenizer = load_tokenizer(replace(weights.model, tokenizer=str(after)))
            template = recipe.evaluation.chat_template or recipe.prompts.chat_template
            set_template(tokenizer, replace(recipe.prompts, chat_template=template))
            inputs = replace(inputs, tokenizer=tokenizer)
        name = f"{moment} ({public_name(path)})"
        reports.append(_measure(recipe, inputs, weights, problems, name, console))
    return reports


def _weights_after(before: Weights, after: Path) -> Weights:
    if not is_adapter(after):
        # Of whatever the recipe says of its own model; what was trained is whole.
        return Weights(replace(before.model, path=str(after), revision=None, fp8="dequantize", quantization=None), None)
    # An adapter of the recipe's model, wherever that was when it was trained; else it says what it is on.
    return (
        Weights(before.model, after) if before.adapter is None else find_weights(replace(before.model, path=str(after)))
    )


def _measure(
    recipe: ReasoningRecipe | GrpoRecipe,
    inputs: SamplingInputs,
    weights: Weights,
    problems: Sequence[Prompt],
    name: str,
    console: Console,
) -> ReasoningReport:
    # The tokenizer has the template.
    settings = replace(recipe.evaluation, chat_template=None)
    model = load_weights(weights)
    check_drafts(model, settings.use_mtp, "evaluation.use_mtp")
    return evaluate_reasoning(model, inputs.tokenizer, problems, inputs.rewards, settings, name=name, console=console)
