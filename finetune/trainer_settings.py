"""TRL's config for a run: what the recipe says, what seeklet sets, and defaults that fit the machine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import SchedulerType, Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames
from trl import DistillationConfig, GRPOConfig, SFTConfig

from .errors import RecipeError
from .recipe import DistillRecipe, GrpoRecipe, Recipe, TopKRecipe, TrainingRecipe
from .sft_config import SeekletSFTConfig

Config = SFTConfig | GRPOConfig | DistillationConfig
R = TypeVar("R", bound=TrainingRecipe)

# The data comes tokenised, masked, cut and packed.
_PREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "label_names": ["labels"]}
# Set whatever the recipe says, which is refused where it names one of them (`recipe.trainer_fields.SET_BY_SEEKLET`).
FIXED: dict[str, dict[str, Any]] = {"sft": _PREPARED, "distill-topk": _PREPARED, "grpo": {}, "distill": {}}
# How long processes wait for one that merges or writes, which may be hundreds of GB; by default, half an hour.
DDP_TIMEOUT_S = 2 * 60 * 60
# Optimizers that take the model apart themselves, and whose state is not, or not only, in the optimizer.
BESIDE_CHECKPOINTS = ("galore", "apollo", "lomo", "adalomo")
# What decides the result, or how the run goes: shown and recorded also where the recipe leaves it to TRL.
DECISIVE = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "train_sampling_strategy",
    "seed",
    "use_cpu",
    "eval_strategy",
    "eval_steps",
    "per_device_eval_batch_size",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "logging_steps",
    "report_to",
)
_DECISIVE_IN_SAMPLING = ("max_completion_length", "temperature", "top_p", "top_k", "min_p", "beta", "use_vllm")
# The same of a stage alone.
DECISIVE_IN: dict[str, tuple[str, ...]] = {
    "grpo": (
        *_DECISIVE_IN_SAMPLING,
        "num_generations",
        "epsilon",
        "epsilon_high",
        "loss_type",
        "scale_rewards",
        "importance_sampling_level",
        "num_iterations",
        "mask_truncated_completions",
    ),
    "distill": (*_DECISIVE_IN_SAMPLING, "disable_dropout", "shuffle_dataset"),
}
# How many checkpoints stay where the recipe does not say: the last one and the one before it or the best.
SAVE_TOTAL_LIMIT = 2


def make_sft_config(recipe: Recipe, checkpoints: Path) -> SeekletSFTConfig:
    """Return TRL's config of the run, whose checkpoints go to `checkpoints`.

    Raises:
        RecipeError: settings contradict each other, or this machine cannot do what they ask for.
    """
    return _make(SeekletSFTConfig, recipe, checkpoints)


def make_grpo_config(recipe: GrpoRecipe, checkpoints: Path) -> GRPOConfig:
    """Return the same for reinforcement learning."""
    return _make(GRPOConfig, recipe, checkpoints, reward_weights=[reward.weight for reward in recipe.rewards])


def make_distill_config(recipe: DistillRecipe, checkpoints: Path) -> DistillationConfig:
    """Return the same for on-policy distillation."""
    return _make(DistillationConfig, recipe, checkpoints)


def make_topk_config(recipe: TopKRecipe, checkpoints: Path) -> SFTConfig:
    """Return the same for distillation from a teacher's tokens on disk."""
    return _make(SFTConfig, recipe, checkpoints)


def _make(config_class: Any, recipe: TrainingRecipe, checkpoints: Path, **fields: Any) -> Any:
    given = dict(recipe.trainer)
    _check(given)
    # Progress is ours.
    fixed = {"output_dir": str(checkpoints), "disable_tqdm": True, "remove_unused_columns": False}
    try:
        config = config_class(**default_settings(recipe) | given | fixed | FIXED[recipe.stage] | fields)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"trainer: {_first_line(error)}") from error
    _check_optimizer(config)
    _check_scheduler(config)
    return config


def complete(recipe: R, config: Config) -> R:
    """Return the recipe with all that is decisive in its trainer section, as its config has settled it."""
    names = DECISIVE + DECISIVE_IN.get(recipe.stage, ())
    settled = {name: getattr(config, name) for name in names}
    # As a recipe writes it: the value of an Enum, and one name for no reporters.
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in settled.items()}
    return replace(recipe, trainer=plain | {"report_to": plain["report_to"] or "none"} | dict(recipe.trainer))


def default_settings(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return what the recipe's trainer section defaults to where TRL's own default would not do.

    TRL computes in bf16 and recomputes activations on CPU too, hides losses that are not numbers, and keeps every
    checkpoint.
    """
    given = recipe.trainer
    on_gpu = _is_on_gpu(given)
    checkpointing = given.get("gradient_checkpointing", on_gpu)
    loads_best = given.get("load_best_model_at_end", _saves_after_each_evaluation(given))
    keeps_best = loads_best or given.get("save_strategy") == "best"
    return {
        "bf16": on_gpu and not given.get("fp16", False) and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": checkpointing,
        # Reentrant checkpointing cuts the router off from the balance loss.
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "save_total_limit": SAVE_TOTAL_LIMIT,
        "metric_for_best_model": _figure_of_the_best(recipe.stage) if keeps_best else None,
        "load_best_model_at_end": loads_best,
        "report_to": ["trackio"] if find_spec("trackio") else "none",
        "project": "seeklet",
        "run_name": Path(recipe.output.dir).name,
        "dataloader_pin_memory": on_gpu,
        "ddp_timeout": DDP_TIMEOUT_S,
    }


def _is_on_gpu(given: Mapping[str, Any]) -> bool:
    return torch.cuda.is_available() and not given.get("use_cpu", False)


def _figure_of_the_best(stage: str) -> str:
    # The loss of a policy is near 0 all the time, whatever it has learned.
    return "reward" if stage == "grpo" else "loss"


def _saves_after_each_evaluation(given: Mapping[str, Any]) -> bool:
    """Return whether there is a checkpoint of each evaluated step, so that the best can be had again at the end."""
    strategy = given.get("eval_strategy", "no")
    if strategy == "no" or strategy != given.get("save_strategy", "steps"):
        return False
    return strategy == "epoch" or given.get("eval_steps") == given.get("save_steps", object())


def check_validation(recipe: TrainingRecipe, num_held_out: int) -> None:
    """Check that there is something to evaluate on where the recipe asks for evaluations.

    Raises:
        RecipeError: there is not.
    """
    strategy, section = recipe.trainer.get("eval_strategy", "no"), "data" if hasattr(recipe, "data") else "prompts"
    if strategy != "no" and not num_held_out:
        raise RecipeError(
            f"trainer.eval_strategy is {strategy}, but nothing was held out; set {section}.validation to files or to a "
            "larger share"
        )


def check_vllm(recipe: TrainingRecipe) -> None:
    """Check that vLLM is there where the recipe leaves samples to it; a dry run elsewhere does without.

    Raises:
        RecipeError: it is not installed.
    """
    if recipe.trainer.get("use_vllm") and find_spec("vllm") is None:
        raise RecipeError(
            "trainer.use_vllm is true, but vllm is not installed: pip install 'trl[vllm]'; allowed without it: false, "
            "for seeklet's own samples"
        )


def _check(given: Mapping[str, Any]) -> None:
    if given.get("label_smoothing_factor"):
        raise RecipeError(
            f"trainer.label_smoothing_factor is {given['label_smoothing_factor']}; allowed: 0, since the loss is "
            "computed in chunks from the labels as they are"
        )
    if given.get("logging_nan_inf_filter"):
        raise RecipeError("trainer.logging_nan_inf_filter is true; allowed: false, a loss that is no number must show")
    if given.get("activation_offloading") and not _is_on_gpu(given):
        raise RecipeError("trainer.activation_offloading is true, which moves them off a GPU; allowed on a CPU: false")
    if given.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise RecipeError(
            f"trainer.ddp_backend is {given['ddp_backend']}, but no accelerate launch started this process"
        )
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if given.get(name) and not given.get("dataloader_num_workers"):
            raise RecipeError(
                f"trainer.{name} is {given[name]}, but no process loads data; set trainer.dataloader_num_workers"
            )
    _check_reporters(given.get("report_to") or ())


def _check_reporters(given: str | Sequence[str]) -> None:
    known, here = sorted(INTEGRATION_TO_CALLBACK), sorted(get_available_reporting_integrations())
    for name in [given] if isinstance(given, str) else given:
        if name in ("none", "all", *here):
            continue
        if name not in known:
            raise RecipeError(f"trainer.report_to is {name}; allowed: none, {', '.join(known)}")
        raise RecipeError(
            f"trainer.report_to is {name}, which is not installed; allowed here: {', '.join(['none', *here])}"
        )


def _check_optimizer(config: Config) -> None:
    """Make the optimizer, of a model of one weight: what is not installed and what it does not take shows here."""
    name = OptimizerNames(config.optim).value
    if name.startswith(BESIDE_CHECKPOINTS):
        raise RecipeError(
            f"trainer.optim is {name}; allowed: optimizers whose whole state is in the checkpoints, which GaLore, "
            "APOLLO and LOMO have not"
        )
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
        kind([nn.Parameter(torch.zeros(1))], **options)
    except ImportError as error:
        raise RecipeError(f"trainer.optim is {name}, which is not installed: {_first_line(error)}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        given = f" with optim_args {config.optim_args}" if config.optim_args else ""
        raise RecipeError(f"trainer.optim is {name}{given}, which cannot be made: {_first_line(error)}") from error


def _check_scheduler(config: Config) -> None:
    """Make the schedule of the learning rate, for an optimizer of one weight."""
    name, given = SchedulerType(config.lr_scheduler_type).value, config.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    try:
        get_scheduler(name, optimizer, config.get_warmup_steps(10), 10, cast("dict[str, Any] | None", given))
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"trainer.lr_scheduler_type is {name} with lr_scheduler_kwargs {given or 'not set'}, which cannot be made: "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
