"""Reinforcement learning from verifiable rewards, from a recipe to a trained model in the run's folder."""

from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers import set_seed

from .evaluation.models import load_tokenizer
from .finish import Finished, finish
from .grpo_plots import draw_grpo_plots
from .grpo_trainer import SeekletGRPOTrainer
from .metrics import MetricsFile
from .progress import training_progress
from .prompts.prepare import as_dataset, as_text, prepare_prompts, set_template, with_columns
from .reasoning import opens_reasoning
from .recipe import GrpoRecipe
from .rewards import RewardSet
from .rewards.guards import RewardGuard
from .run import Run, running, without_bars
from .run_folder import RunFolder
from .trainer_settings import check_validation, check_vllm, complete, make_grpo_config
from .training_model import build_training_model, check_rollout, mtp_mode


@dataclass(frozen=True)
class GrpoResult:
    """What a run has left.

    Attributes:
        folder: the run's.
        trained: the adapter or the model.
        merged: the adapter merged into its model, where that was asked for.
        steps: optimiser steps that were done, those of earlier parts of the run included.
        reward: the mean of the last.
        plots: the figures by name.
    """

    folder: Path
    trained: Path
    merged: Path | None
    steps: int
    reward: float
    plots: dict[str, Path]


def train(recipe: GrpoRecipe, *, resume: bool = False, console: Console | None = None) -> GrpoResult:
    """Return what training as the recipe says has left in its `output.dir`; what can be checked is checked first.

    With `resume` the run that is there goes on from its last checkpoint. Under `accelerate launch` call it in every
    process; the first one writes and speaks.

    Raises:
        RecipeError: the recipe cannot be carried out, or the folder is taken, or holds nothing to go on with.
        DataError: the prompts cannot be used.
        AdapterError: the adapter cannot be saved, loaded or merged.
        CheckpointError: the model's files are damaged.
        TrainingError: training had to stop; says why, and where it can go on from.
        KeyboardInterrupt: after saying where the run can go on from.
    """
    check_vllm(recipe)
    config = make_grpo_config(recipe, RunFolder.of(recipe).checkpoints)
    with running(complete(recipe, config), config, resume, console) as run:
        return _train(run)


def _train(run: Run[GrpoRecipe]) -> GrpoResult:
    recipe, folder = run.recipe, run.folder
    tokenizer = load_tokenizer(recipe.model)
    set_template(tokenizer, recipe.prompts)
    train, validation = prepare_prompts(recipe.prompts, tokenizer)
    check_validation(recipe, len(validation))
    counts = f"{len(train):,} prompts to train on, {len(validation):,} held out"
    run.say(counts)
    rewards = RewardSet(
        recipe.rewards,
        on_error=recipe.rollout.on_error,
        max_failed_share=recipe.rollout.max_failed_share,
        opened=opens_reasoning(as_text(tokenizer, train[0])),
        failures_file=folder.path / "reward_failures.jsonl" if run.is_main else None,
    )
    set_seed(run.config.seed)
    model = build_training_model(recipe)
    check_rollout(model, recipe.rollout)
    description = run.show(model)
    run.begin()
    with training_progress(run.console) as progress, without_bars():
        trainer = SeekletGRPOTrainer(
            model,
            [with_columns(function) for function in rewards.functions],
            run.config,
            tokenizer,
            as_dataset(train),
            as_dataset(validation) if validation else None,
            mtp_loss=mtp_mode(model, recipe.moe, recipe.stage),
            bias_update_speed=recipe.moe.bias_update_speed or 0.0,
            drafts=recipe.rollout.use_mtp,
            replays_routing=recipe.rollout.replay_routing,
            router_folder=folder.path / "router" if recipe.rollout.record_router else None,
            callbacks=[MetricsFile(folder.metrics), RewardGuard(rewards), progress],
            max_shard_gb=recipe.output.max_shard_gb,
        )
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    trained = folder.trained(isinstance(model, PeftModel))
    trainer.save_trained(trained)
    entries = trainer.state.log_history
    reward = next((entry["reward"] for entry in reversed(entries) if "reward" in entry), float("nan"))
    finished = Finished()
    if run.is_main:
        finished = finish(run, model, trained, draw_grpo_plots, [counts], description)
        run.say(f"Done: {trainer.state.global_step:,} steps, mean reward {reward:.3f}. {trained}")
    wait_for_everyone()
    return GrpoResult(folder.path, trained, finished.merged, trainer.state.global_step, reward, finished.plots)
