"""Any recipe carried out, or shown: the function of its stage is imported when it is asked for, and called."""

import importlib
from typing import Any

from rich.console import Console

from .recipe import RolloutRecipe, StageRecipe, TrainingRecipe

# Module and function of each stage.
FUNCTIONS = {
    "sft": ("sft", "train"),
    "grpo": ("grpo", "train"),
    "distill": ("distill.train_on_policy", "train"),
    "distill-topk": ("distill.train_topk", "train"),
    "rollout": ("rollout_stage", "run_rollout"),
    "reasoning": ("reasoning_stage", "run_reasoning"),
}
DRY_RUNS = {
    "sft": ("dry_run", "show_dry_run"),
    "grpo": ("dry_run", "show_grpo_dry_run"),
    "distill": ("distill.dry_run", "show_distill_dry_run"),
    "distill-topk": ("distill.dry_run", "show_topk_dry_run"),
    "rollout": ("rollout_dry_run", "show_rollout_dry_run"),
}


def carry_out(recipe: StageRecipe, *, resume: bool = False, console: Console | None = None) -> Any:
    """Return what the stage of a recipe returns when it is done; with `resume` what is in `output.dir` goes on.

    Raises:
        SeekletError: as the stage's own function.
    """
    return _find(*FUNCTIONS[recipe.stage])(recipe, resume=resume, console=console)


def show_training(recipe: TrainingRecipe | RolloutRecipe, console: Console) -> None:
    """Print what training or sampling as a recipe says would do; nothing is written.

    Raises:
        SeekletError: as the stage's own function.
    """
    _find(*DRY_RUNS[recipe.stage])(recipe, console)


def _find(module: str, function: str) -> Any:
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)
