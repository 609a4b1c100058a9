"""`seeklet train`: a recipe is read, checked and carried out."""

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(help="A recipe: one YAML file.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Keys of the recipe to change for this run, by their dotted names; values are read as YAML.",
        show_default=False,
    ),
]


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show the whole recipe, token counts, steps, parameters and memory."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in output.dir, bit by bit as if never stopped."),
    ] = False,
) -> None:
    """Train a model as a recipe says.

    Everything is checked before a model is loaded. Progress is shown, metrics go to `metrics.jsonl` in the recipe's
    `output.dir`, and what was trained is there at the end, with plots and a draft of a model card.

    Change single keys without a new file:

        seeklet train recipes/sft_smollm2-135m_support_cpu.yaml trainer.learning_rate=1e-4 adapter.rank=8

        seeklet train recipes/sft_smollm2-135m_support_cpu.yaml 'data.train=[calls.csv, mails.csv]' --dry-run

        accelerate launch --num_processes 1 -m seeklet.finetune train recipes/sft_deepseek-v3_chat_8xh200.yaml

    Stopped with Ctrl-C or killed, a run goes on from its last checkpoint:

        seeklet train recipes/sft_smollm2-135m_support_cpu.yaml --resume
    """
    from .carry_out import carry_out, show_training
    from .recipe import TrainingRecipe, load_recipe

    loaded = load_recipe(recipe, overrides or (), TrainingRecipe)
    if dry_run:
        from rich.console import Console

        from .cli import is_first_process

        show_training(loaded, Console(highlight=False, quiet=not is_first_process()))
    else:
        carry_out(loaded, resume=resume)
