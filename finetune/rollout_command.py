"""`seeklet rollout`: rejection sampling as a recipe says."""

from typing import Annotated

import typer

from .train_command import OverridesArgument, RecipeArgument


def rollout(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show the whole recipe, its prompts in tokens, rewards and batches."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the rollout in output.dir, as if never stopped; or filter it anew."),
    ] = False,
) -> None:
    """Sample a model's answers to prompts, and keep the right and well-made ones as a data set for `seeklet train`.

    Every attempt is on disk as soon as its batch is scored. `dataset.jsonl` is in the recipe's `output.dir` at the end,
    each row with where it comes from, beside a report of what was left out and why.

        seeklet rollout recipes/rollout_qwen2.5-7b_maths_8xh200.yaml --dry-run

        seeklet rollout recipes/rollout_qwen2.5-7b_maths_8xh200.yaml model.path=runs/grpo/adapter sampling.num_samples=8

        accelerate launch -m seeklet.finetune rollout recipes/rollout_qwen2.5-7b_maths_8xh200.yaml

    Stopped with Ctrl-C or killed, it goes on behind the last prompt that was done; the data set is the same, byte by
    byte. When it is done, the same with other filters makes another data set of the same attempts:

        seeklet rollout recipes/rollout_qwen2.5-7b_maths_8xh200.yaml --resume

        seeklet rollout recipes/rollout_qwen2.5-7b_maths_8xh200.yaml --resume sampling.always_solved=drop
    """
    from .recipe import RolloutRecipe, load_recipe

    loaded = load_recipe(recipe, overrides or (), RolloutRecipe)
    if dry_run:
        from rich.console import Console

        from .cli import is_first_process
        from .rollout_dry_run import show_rollout_dry_run

        show_rollout_dry_run(loaded, Console(highlight=False, quiet=not is_first_process()))
    else:
        from .rollout_stage import run_rollout

        run_rollout(loaded, resume=resume)
