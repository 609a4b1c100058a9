"""TRL's config for a run: what the recipe says, what seeklet sets, and defaults that fit the machine."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from .errors import RecipeError
from .recipe import Recipe

# Set whatever the recipe says, which is refused where it names one of them (`trainer_fields.SET_BY_SEEKLET`).
FIXED: dict[str, Any] = {
    # The data comes tokenised, masked, cut and packed.
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    # Progress is ours. A loss that is not a number must be seen.
    "disable_tqdm": True,
}
# Packages of this very name, without which transformers stops where training begins.
REPORTERS = ("trackio", "wandb", "mlflow", "comet_ml", "clearml", "swanlab")
# How many checkpoints stay where the recipe does not say: the last one and the one before it or the best.
SAVE_TOTAL_LIMIT = 2


def make_trainer_config(recipe: Recipe, checkpoints: Path) -> SFTConfig:
    """Return TRL's config of the run, whose checkpoints go to `checkpoints`.

    Raises:
        RecipeError: settings contradict each other, or this machine cannot do what they ask for.
    """
    given = dict(recipe.trainer)
    _check(given)
    try:
        return SFTConfig(output_dir=str(checkpoints), **default_settings(recipe) | given | FIXED)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"trainer: {str(error).strip().splitlines()[0]}") from error


def default_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe's trainer section defaults to where TRL's own default would not do.

    TRL computes in bf16 and recomputes activations on CPU too, hides losses that are not numbers, and keeps every
    checkpoint.
    """
    given = recipe.trainer
    on_gpu = torch.cuda.is_available() and not given.get("use_cpu", False)
    checkpointing = given.get("gradient_checkpointing", on_gpu)
    return {
        "bf16": on_gpu and not given.get("fp16", False) and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": checkpointing,
        # Reentrant checkpointing cuts the router off from the balance loss.
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "save_total_limit": SAVE_TOTAL_LIMIT,
        "load_best_model_at_end": _saves_after_each_evaluation(given),
        "report_to": ["trackio"] if find_spec("trackio") else "none",
        "project": "seeklet",
        "run_name": Path(recipe.output.dir).name,
        "dataloader_pin_memory": on_gpu,
    }


def _saves_after_each_evaluation(given: dict[str, Any] | Any) -> bool:
    """Return whether there is a checkpoint of each evaluated step, so that the best can be had again at the end."""
    strategy = given.get("eval_strategy", "no")
    if strategy == "no" or strategy != given.get("save_strategy", "steps"):
        return False
    return strategy == "epoch" or given.get("eval_steps") == given.get("save_steps", object())


def check_validation(recipe: Recipe, num_held_out: int) -> None:
    """Check that there is something to evaluate on where the recipe asks for evaluations.

    Raises:
        RecipeError: there is not.
    """
    strategy = recipe.trainer.get("eval_strategy", "no")
    if strategy != "no" and not num_held_out:
        raise RecipeError(
            f"trainer.eval_strategy is {strategy}, but no conversation was held out; set data.validation to files or "
            "to a larger share"
        )


def _check(given: dict[str, Any]) -> None:
    if given.get("label_smoothing_factor"):
        raise RecipeError(
            f"trainer.label_smoothing_factor is {given['label_smoothing_factor']}; allowed: 0, since the loss is "
            "computed in chunks from the labels as they are"
        )
    if given.get("logging_nan_inf_filter"):
        raise RecipeError("trainer.logging_nan_inf_filter is true; allowed: false, a loss that is no number must show")
    reporters = given.get("report_to") or ()
    for name in [reporters] if isinstance(reporters, str) else reporters:
        if name in REPORTERS and find_spec(name) is None:
            raise RecipeError(f"trainer.report_to is {name}, which is not installed: pip install {name}, or set none")
