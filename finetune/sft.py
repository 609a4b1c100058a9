"""Supervised fine-tuning from a recipe to a trained model in the run's folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from seeklet.modeling.expert_slices import ExpertSlice

from .data.prepare import Prepared, prepare
from .data.template import served_template
from .early_stopping import EarlyStopping
from .evaluation.models import load_tokenizer
from .finish import finish
from .metrics import MetricsFile
from .plots import draw_plots
from .progress import training_progress
from .recipe import Recipe
from .run import Run, running, without_bars
from .run_folder import RunFolder
from .sft_trainer import SeekletSFTTrainer
from .trainer_settings import check_validation, complete, make_sft_config
from .training_model import build_training_model, check_drafts, check_expert_parallel, check_tokens, mtp_mode


@dataclass(frozen=True)
class TrainResult:
    """What a run has left.

    Attributes:
        folder: the run's.
        trained: the adapter or the model.
        merged: the adapter merged into its model, where that was asked for.
        steps: optimiser steps that were done, those of earlier parts of the run included.
        loss: the last of training, of the next token.
        held_out_loss: of what was saved, or the last one; None where nothing was held out.
        plots: the figures by name.
    """

    folder: Path
    trained: Path
    merged: Path | None
    steps: int
    loss: float
    held_out_loss: float | None
    plots: dict[str, Path]


def train(recipe: Recipe, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Return what training as the recipe says has left in its `output.dir`; what can be checked is checked first.

    With `resume` the run that is there goes on from its last checkpoint, and is bit by bit what it would have been.
    Under `accelerate launch` call it in every process; the first one writes and speaks.

    Raises:
        RecipeError: the recipe cannot be carried out, or the folder is taken, or holds nothing to go on with.
        DataError: the data cannot be used.
        AdapterError: the adapter cannot be saved, loaded or merged.
        CheckpointError: the model's files are damaged.
        TrainingError: training had to stop; says why, and where it can go on from.
        KeyboardInterrupt: after saying where the run can go on from.
    """
    config = make_sft_config(recipe, RunFolder.of(recipe).checkpoints)
    check_expert_parallel(recipe, config.world_size)
    with running(complete(recipe, config), config, resume, console) as run:
        return _train(run)


def _train(run: Run[Recipe]) -> TrainResult:
    recipe, folder = run.recipe, run.folder
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(recipe.data, tokenizer, folder.skipped_rows if run.is_main else None)
    check_validation(recipe, len(prepared.validation))
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = served_template(prepared.template)
    for line in prepared.report.lines():
        run.say(line)
    set_seed(run.config.seed)
    sharing = run.config.expert_parallel
    experts = ExpertSlice(run.config.process_index % sharing, sharing) if sharing > 1 else None
    model = build_training_model(recipe, experts)
    check_tokens(model, recipe.model, prepared.train)
    # Of `seeklet evaluate`, which is not to say so after hours of training.
    check_drafts(model, recipe.evaluation.use_mtp, "evaluation.use_mtp")
    description = run.show(model)
    run.begin()
    trainer = _run(run, model, tokenizer, prepared)
    trained = folder.trained(isinstance(model, PeftModel))
    trainer.save_trained(trained)
    result = _result(trainer, folder, trained)
    if run.is_main:
        finished = finish(run, model, trained, draw_plots, prepared.report.lines(), description)
        result = replace(result, plots=finished.plots, merged=finished.merged)
        held_out = "" if result.held_out_loss is None else f", held-out loss {result.held_out_loss:.4f}"
        run.say(f"Done: {result.steps:,} steps{held_out}. {trained}")
    wait_for_everyone()
    return result


def _run(run: Run[Recipe], model: Any, tokenizer: PreTrainedTokenizerBase, prepared: Prepared) -> SeekletSFTTrainer:
    """Return the trainer when it is done."""
    recipe, evaluation = run.recipe, run.recipe.evaluation
    callbacks: list[TrainerCallback] = [MetricsFile(run.folder.metrics)]
    if evaluation.patience is not None:
        callbacks.append(EarlyStopping(evaluation.patience, evaluation.min_improvement))
    with training_progress(run.console) as progress, without_bars():
        trainer = SeekletSFTTrainer(
            model,
            run.config,
            tokenizer,
            prepared.train,
            prepared.validation if len(prepared.validation) else None,
            mtp_loss=mtp_mode(model, recipe.moe, recipe.stage),
            callbacks=[*callbacks, progress],
            max_shard_gb=recipe.output.max_shard_gb,
        )
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    return trainer


def _result(trainer: SeekletSFTTrainer, folder: RunFolder, trained: Path) -> TrainResult:
    history = trainer.state.log_history
    losses = [entry.get("lm_loss", entry["loss"]) for entry in history if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    loads_best = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    return TrainResult(
        folder=folder.path,
        trained=trained,
        merged=None,
        steps=trainer.state.global_step,
        loss=losses[-1] if losses else float("nan"),
        held_out_loss=(min(held_out) if loads_best else held_out[-1]) if held_out else None,
        plots={},
    )
