"""`seeklet evaluate`: the model of a recipe, before and after training, on conversations it was not trained on."""

from pathlib import Path
from typing import Annotated

import typer

from .train_command import OverridesArgument, RecipeArgument


def evaluate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    after: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the adapter or model to measure as after training; else what is in output.dir.",
            show_default=False,
        ),
    ] = None,
    before_only: Annotated[
        bool,
        typer.Option("--before-only", help="Measure the model before training alone; nothing need be trained yet."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.md and evaluation.json; else output.dir.", show_default=False),
    ] = None,
) -> None:
    """Measure the model of a recipe on its held-out conversations, before and after training.

    Held-out loss and perplexity, and what the recipe's `evaluation.metrics` name, with 95 % intervals. The report, with
    answers side by side, goes to the recipe's `output.dir`.

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml evaluation.num_examples=50

    The merged model, or any other, in place of what training left there:

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml --after merged/
    """
    if after and before_only:
        raise typer.BadParameter("leave one of --after and --before-only out")
    from .evaluate import evaluate as evaluate_recipe
    from .recipe import load_recipe

    evaluate_recipe(load_recipe(recipe, overrides or ()), after=after, before_only=before_only, out=out)
