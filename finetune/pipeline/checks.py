"""What can be known to be wrong with late stages before the first one runs, beyond their recipes' text."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import RecipeError
from ..recipe import TrainingRecipe
from ..rewards import RewardSet
from ..run_folder import RunFolder
from ..trainer_settings import check_vllm, make_distill_config, make_grpo_config, make_sft_config, make_topk_config
from .settings import Pipeline

# Of each training stage: what makes TRL's config, and checks it.
MAKERS: Mapping[str, Callable[..., Any]] = {
    "sft": make_sft_config,
    "grpo": make_grpo_config,
    "distill": make_distill_config,
    "distill-topk": make_topk_config,
}
# Trainer settings that depend on how many processes there are, or on their machine, which need not be this one.
OF_THE_LAUNCHED = frozenset(
    {
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "generation_batch_size",
        "steps_per_generation",
        "num_generations",
        "num_generations_eval",
        "ddp_backend",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "bf16",
        "fp16",
        "tf32",
    }
)


def check_stages(pipeline: Pipeline) -> None:
    """Check rewards and trainer settings of all stages: a mistake in the last one would show after days.

    Raises:
        RecipeError: some are wrong; a line for each stage.
    """
    problems = []
    for stage in pipeline.stages:
        try:
            if rewards := getattr(stage.recipe, "rewards", ()):
                RewardSet(rewards)
            if isinstance(stage.recipe, TrainingRecipe):
                check_vllm(stage.recipe)
                recipe = _without_own_checks(stage.recipe) if stage.launch else stage.recipe
                MAKERS[stage.kind](recipe, RunFolder.of(recipe).checkpoints)
        except RecipeError as error:
            problems.append(f"stages.{stage.name}: {error}")
    if pipeline.evaluation is not None:
        try:
            RewardSet(pipeline.evaluation.rewards)
        except RecipeError as error:
            problems.append(f"evaluation: {error}")
    if problems:
        raise RecipeError("\n".join(problems))


def _without_own_checks(recipe: TrainingRecipe) -> TrainingRecipe:
    """Return the recipe without what the processes it is launched in check themselves."""
    return replace(
        recipe, trainer={name: value for name, value in recipe.trainer.items() if name not in OF_THE_LAUNCHED}
    )
