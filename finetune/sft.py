"""Supervised fine-tuning from a recipe to a trained model in the run's folder."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.utils import logging
from trl import SFTConfig

from .atomic_files import write_text
from .card import RunFacts, make_card
from .checkpoints import last_checkpoint, num_processes_of, step_of
from .data.prepare import Prepared, prepare
from .data.template import ChatTemplate
from .early_stopping import EarlyStopping
from .errors import RecipeError, TrainingError
from .evaluation.models import load_tokenizer
from .lora.attach import adapted_table
from .lora.merge import merge_adapter
from .metrics import MetricsFile, keep_until, read_metrics
from .plots import draw_plots
from .progress import training_progress
from .recipe import Recipe, as_yaml
from .run_folder import RunFolder, check_run_folder, locked
from .sft_trainer import SeekletSFTTrainer
from .trainer_settings import check_validation, complete, make_trainer_config
from .training_model import build_training_model, check_tokens, find_seeklet, mtp_mode

# A Jinja comment trims white space as the marker does that it stands for.
_MARKER = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


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
    folder = RunFolder.of(recipe)
    config = make_trainer_config(recipe, folder.checkpoints)
    recipe = complete(recipe, config)
    check_run_folder(recipe, resume)
    if config.n_gpu > 1 and recipe.model.device_map is None:
        # Trainer would wrap the model in DataParallel, whose replicas count no expert load and share no loss.
        raise RecipeError(
            f"{config.n_gpu} GPUs are visible to one process; start one process for each "
            "(accelerate launch -m seeklet.finetune train RECIPE), or show it a single one (CUDA_VISIBLE_DEVICES=0)"
        )
    is_main = config.process_index == 0
    console = (console or Console(highlight=False)) if is_main else Console(quiet=True)
    # All have looked at the folder before one begins to fill it.
    wait_for_everyone()
    lock: AbstractContextManager[None] = locked(folder) if is_main else nullcontext()
    # In a log file the bars of loading and saving would be lines and lines.
    quiet = nullcontext() if console.is_terminal else _without_bars()
    with lock, _errors_explained(folder, console), quiet:
        return _train(recipe, folder, config, console)


def served_template(template: ChatTemplate) -> str:
    """Return the template without the markers of what is trained on, which not every engine knows."""
    return _MARKER.sub(r"{#\1 \2#}", template.text)


def _train(recipe: Recipe, folder: RunFolder, config: SFTConfig, console: Console) -> TrainResult:
    is_main = config.process_index == 0
    checkpoint = last_checkpoint(folder.checkpoints)
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(recipe.data, tokenizer, folder.skipped_rows if is_main else None)
    check_validation(recipe, len(prepared.validation))
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = served_template(prepared.template)
    for line in prepared.report.lines():
        console.print(line, markup=False, soft_wrap=True)
    set_seed(config.seed)
    model = build_training_model(recipe)
    check_tokens(model, recipe.model, prepared.train)
    description = _describe(model, recipe)
    # The table says the first of these lines in its title.
    is_adapter = isinstance(model, PeftModel)
    for line in description[is_adapter:]:
        console.print(line, markup=False, soft_wrap=True)
    if isinstance(model, PeftModel):
        console.print(adapted_table(model))
    if is_main:
        _begin(recipe, folder, checkpoint)
    if checkpoint is not None:
        console.print(f"Going on from step {step_of(checkpoint):,}: {checkpoint}", markup=False, soft_wrap=True)
        if (before := num_processes_of(checkpoint)) != config.world_size:
            now = f"saved by {before} processes, and there are {config.world_size} now"
            console.print(f"It was {now}: the rest will not be bit by bit what it would have been", soft_wrap=True)
    trainer = _run(recipe, folder, config, console, model, tokenizer, prepared, checkpoint)
    trained = folder.trained(is_adapter)
    trainer.save_trained(trained)
    result = _result(trainer, folder, trained)
    if is_main:
        result = _finish(recipe, result, prepared, description, console, find_seeklet(model) is not None)
    wait_for_everyone()
    return result


def _begin(recipe: Recipe, folder: RunFolder, checkpoint: Path | None) -> None:
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_text(folder.recipe, as_yaml(recipe))
    if folder.metrics.exists():
        keep_until(folder.metrics, step_of(checkpoint) if checkpoint else 0)


def _run(
    recipe: Recipe,
    folder: RunFolder,
    config: SFTConfig,
    console: Console,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    checkpoint: Path | None,
) -> SeekletSFTTrainer:
    """Return the trainer when it is done."""
    callbacks: list[TrainerCallback] = [MetricsFile(folder.metrics)]
    evaluation = recipe.evaluation
    if evaluation.patience is not None:
        callbacks.append(EarlyStopping(evaluation.patience, evaluation.min_improvement))
    with training_progress(console) as progress, _without_bars():
        trainer = SeekletSFTTrainer(
            model,
            config,
            tokenizer,
            prepared.train,
            prepared.validation if len(prepared.validation) else None,
            mtp_loss=mtp_mode(model, recipe.moe),
            callbacks=[*callbacks, progress],
            max_shard_gb=recipe.output.max_shard_gb,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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


def _finish(
    recipe: Recipe,
    result: TrainResult,
    prepared: Prepared,
    description: list[str],
    console: Console,
    is_seeklet: bool,
) -> TrainResult:
    """Return the result with plots and merged model, after writing these and the card."""
    folder = RunFolder(result.folder)
    entries = read_metrics(folder.metrics)
    plots = draw_plots(entries, folder.plots) if recipe.output.plots else {}
    merged = None
    if recipe.output.merge:
        merged = folder.merged
        base = Path(recipe.model.path).expanduser()
        named = base if base.exists() else recipe.model.path
        merge_adapter(result.trained, merged, named, overwrite=True, revision=recipe.model.revision)
    data = [line.replace(str(folder.skipped_rows), folder.skipped_rows.name) for line in prepared.report.lines()]
    relative = {name: file.relative_to(folder.path) for name, file in plots.items()}
    trained = result.trained.relative_to(folder.path)
    card = make_card(RunFacts(recipe, entries, data, description, relative, trained, is_seeklet))
    write_text(folder.card, str(card))
    held_out = "" if result.held_out_loss is None else f", held-out loss {result.held_out_loss:.4f}"
    console.print(f"Done: {result.steps:,} steps{held_out}. {result.trained}", markup=False, soft_wrap=True)
    return replace(result, plots=plots, merged=merged)


def _describe(model: torch.nn.Module, recipe: Recipe) -> list[str]:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = [f"{trained:,} of {total:,} parameters trained ({trained / max(1, total):.2%})"]
    seeklet = find_seeklet(model)
    if seeklet is not None and seeklet.config.num_nextn_predict_layers:
        weight = f", weight {seeklet.config.mtp_loss_weight:g}" if mtp_mode(model, recipe.moe) != "off" else ""
        lines.append(f"multi-token prediction loss: {mtp_mode(model, recipe.moe)}{weight}")
    halves = {torch.bfloat16, torch.float16}
    if recipe.adapter is None and any(p.requires_grad and p.dtype in halves for p in model.parameters()):
        lines.append(
            "the weights themselves are held in half precision, which loses small updates; "
            "model.dtype: float32 with trainer.bf16: true keeps them"
        )
    return lines


@contextmanager
def _without_bars() -> Iterator[None]:
    """Leave the terminal to the progress of training: transformers has a bar for each save."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@contextmanager
def _errors_explained(folder: RunFolder, console: Console) -> Iterator[None]:
    """Say where the run can go on from, whatever ends it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Stopped: {_where_to_go_on(folder)}", markup=False, soft_wrap=True)
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory is full; lower trainer.per_device_train_batch_size (and raise "
            "trainer.gradient_accumulation_steps by as much), lower data.max_tokens, or set trainer."
            f"gradient_checkpointing: true. {_where_to_go_on(folder)}"
        ) from error
    except OSError as error:
        # A disk that is full, or gone, under the metrics, the plots or the merged model.
        raise TrainingError(
            f"{error.filename or folder.path}: {error.strerror or error}. {_where_to_go_on(folder)}"
        ) from error


def _where_to_go_on(folder: RunFolder) -> str:
    last = last_checkpoint(folder.checkpoints)
    if last is None:
        again = "--resume begins the run again" if folder.recipe.is_file() else "nothing was trained"
        return f"there is no checkpoint yet; {again}"
    return f"the last good checkpoint is {last}; --resume goes on from there"
