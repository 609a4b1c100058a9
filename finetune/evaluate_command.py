"""`seeklet evaluate`: the model of a recipe, before and after training, on what it was not trained on."""

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
        typer.Option(help="Folder for the report; else output.dir.", show_default=False),
    ] = None,
) -> None:
    """Measure the model of a recipe on what it holds out, before and after training.

    Of stage `sft`: held-out loss and perplexity, and what the recipe's `evaluation.metrics` name. Of stage `grpo`:
    pass@1, pass@k and maj@k on its held-out prompts. With 95 % intervals; the report goes to the recipe's `output.dir`.

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml evaluation.num_examples=50

    The merged model, or any other, in place of what training left there:

        seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml --after merged/

    How well any model reasons, or two of them beside each other, as stage `reasoning` says:

        seeklet evaluate recipes/reasoning_qwen2.5-7b_maths_1gpu.yaml

        seeklet evaluate recipes/reasoning_qwen2.5-7b_maths_1gpu.yaml --after runs/grpo/model
    """
    if after and before_only:
        raise typer.BadParameter("leave one of --after and --before-only out")
    from .errors import RecipeError
    from .recipe import GrpoRecipe, ReasoningRecipe, Recipe, StageRecipe, load_recipe

    loaded = load_recipe(recipe, overrides or (), StageRecipe)
    if isinstance(loaded, Recipe):
        from .evaluate import evaluate as evaluate_conversations

        evaluate_conversations(loaded, after=after, before_only=before_only, out=out)
    elif isinstance(loaded, GrpoRecipe | ReasoningRecipe):
        from .reasoning_stage import evaluate_recipe

        evaluate_recipe(loaded, after=after, before_only=before_only, out=out)
    else:
        raise RecipeError(
            f"{recipe}: stage: {loaded.stage} has nothing to evaluate by; allowed: sft, grpo, or a recipe of stage "
            "reasoning for its model"
        )
