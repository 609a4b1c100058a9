"""What a pipeline would do: each stage's recipe, what it reads and leaves, and what it takes; nothing is written."""

from dataclasses import replace
from typing import TypeVar

from rich.console import Console

from ..carry_out import show_training
from ..recipe import RolloutRecipe, StageRecipe, TrainingRecipe, as_yaml
from .inputs import list_inputs
from .settings import Pipeline, Stage, product_kind

R = TypeVar("R", bound=StageRecipe)


def show_pipeline(pipeline: Pipeline, console: Console) -> None:
    """Print each stage: a dry run of its own where its data is there, else its recipe; and what it reads and leaves.

    Raises:
        SeekletError: a stage cannot be carried out as its recipe says.
    """
    for index, stage in enumerate(pipeline.stages):
        console.rule(f"{index + 1}/{len(pipeline.stages)} {stage.name} ({stage.kind})")
        _show_stage(pipeline, stage, console)
    if pipeline.evaluation is not None:
        console.rule("evaluation")
        names = [stage.name for stage in pipeline.stages if stage.trains]
        console.print(f"of the first model, and after {', '.join(names)}:", markup=False)
        _print_recipe(pipeline.evaluation, console)
    _say(console, f"Dry run of {len(pipeline.stages)} stages: nothing was run, and nothing written.")


def _show_stage(pipeline: Pipeline, stage: Stage, console: Console) -> None:
    for key, name in list_inputs(stage.recipe):
        referred = stage.references.get(key) or stage.references.get(key.removesuffix("[0]"))
        _say(console, f"reads {key}: {name}" + (f" (of {referred})" if referred else ""))
    _say(console, f"leaves {product_kind(stage.recipe)}: {stage.product}")
    if stage.launch:
        _say(console, f"started with: {' '.join(stage.launch)}")
    to_come = [key for key, name in stage.references.items() if not pipeline.stage(name).product.exists()]
    data = [key for key in to_come if not key.endswith(".path")]
    if data or not isinstance(stage.recipe, TrainingRecipe | RolloutRecipe):
        if data:
            _say(console, f"{data[0]} is made by {stage.references[data[0]]}: its tokens cannot be counted yet")
        _print_recipe(stage.recipe, console)
        return
    for key in to_come:
        _say(console, f"{key} is made by {stage.references[key]}; counted here on what that begins with")
    show_training(with_first_models(pipeline, stage, stage.recipe), console)


def with_first_models(pipeline: Pipeline, stage: Stage, recipe: R) -> R:
    """Return a stage's recipe, models that earlier stages have yet to make replaced by what those begin with."""
    for key in ("model", "teacher"):
        name = stage.references.get(f"{key}.path")
        if name is None or (before := pipeline.stage(name)).product.exists():
            continue
        first = with_first_models(pipeline, before, before.recipe).model
        own = getattr(recipe, key)
        model = replace(own, path=first.path, revision=first.revision, tokenizer=own.tokenizer or first.tokenizer)
        recipe = replace(recipe, **{key: model})
    return recipe


def _print_recipe(recipe: StageRecipe, console: Console) -> None:
    console.print(as_yaml(recipe), markup=False, highlight=False, soft_wrap=True)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
