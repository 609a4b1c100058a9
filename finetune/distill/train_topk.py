"""Distillation from a teacher's tokens on disk, from a recipe to a trained student in the run's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers import set_seed

from ..data.prepare import prepare
from ..data.template import served_template
from ..evaluation.models import load_tokenizer
from ..finish import Finished, finish
from ..metrics import MetricsFile
from ..progress import training_progress
from ..reasoning import THINK
from ..recipe import TopKRecipe
from ..run import Run, running, without_bars
from ..run_folder import RunFolder
from ..trainer_settings import check_validation, complete, make_topk_config
from ..training_model import build_training_model, check_tokens, mtp_mode
from .plots import draw_distillation_plots
from .student_pass import bare_model
from .teacher_cache import check_cache, complete_cache
from .topk_trainer import SeekletTopKTrainer
from .vocabulary import describe_split_tags


@dataclass(frozen=True)
class TopKResult:
    """What a run has left.

    Attributes:
        folder: the run's.
        cache: the folder of the teacher's tokens.
        trained: the adapter or the model.
        merged: the adapter merged into its model, where that was asked for.
        steps: optimiser steps that were done, those of earlier parts of the run included.
        divergence: the last of training: how far the student is from its teacher, in nats per token.
        held_out_loss: the last cross entropy of what was held out; None where nothing was.
        plots: the figures by name.
    """

    folder: Path
    cache: Path
    trained: Path
    merged: Path | None
    steps: int
    divergence: float
    held_out_loss: float | None
    plots: dict[str, Path]


def train(recipe: TopKRecipe, *, resume: bool = False, console: Console | None = None) -> TopKResult:
    """Return what training as the recipe says has left in its `output.dir`; what can be checked is checked first.

    What the cache lacks of the teacher's tokens is made before; an interrupted teacher goes on where it was, with
    `resume` where the cache is in `output.dir`. With `resume` a run that has a checkpoint goes on from the last one.
    Under `accelerate launch` call it in every process; the first one reads with the teacher, writes and speaks.

    Raises:
        RecipeError: the recipe cannot be carried out, or the folder is taken, or holds nothing to go on with.
        DataError: the data or the cache cannot be used.
        AdapterError: an adapter cannot be saved, loaded or merged.
        CheckpointError: the files of student or teacher are damaged.
        TrainingError: training had to stop; says why, and where it can go on from.
        KeyboardInterrupt: after saying where the run can go on from.
    """
    config = make_topk_config(recipe, RunFolder.of(recipe).checkpoints)
    with running(complete(recipe, config), config, resume, console) as run:
        return _train(run)


def _train(run: Run[TopKRecipe]) -> TopKResult:
    recipe, folder = run.recipe, run.folder
    tokenizer = load_tokenizer(recipe.model)
    num_shared = check_cache(recipe, tokenizer)
    prepared = prepare(recipe.data, tokenizer, folder.skipped_rows if run.is_main else None)
    check_validation(recipe, len(prepared.validation))
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = served_template(prepared.template)
    for line in prepared.report.lines():
        run.say(line)
    text = str(tokenizer.decode(prepared.train[0]["input_ids"]))
    if THINK in text and (warning := describe_split_tags(tokenizer)):
        run.say(f"warning: {warning}")
    set_seed(run.config.seed)
    model = build_training_model(recipe)
    check_tokens(model, recipe.model, prepared.train)
    description = run.show(model)
    given = (run, prepared.train, tokenizer, num_shared)
    # A cache elsewhere may be of other data, which is to show before the folder is this run's.
    cache = complete_cache(*given) if recipe.cache.dir else None
    if cache is not None:
        head: Any = bare_model(model).get_output_embeddings()
        cache.check_student(tokenizer, head.weight.shape[0])
        cache.attach(prepared.train)
    run.begin()
    cache = cache or complete_cache(*given)
    with training_progress(run.console) as progress, without_bars():
        trainer = SeekletTopKTrainer(
            model,
            run.config,
            tokenizer,
            prepared.train,
            prepared.validation if len(prepared.validation) else None,
            cache=cache,
            settings=recipe.distillation,
            mtp_loss=mtp_mode(model, recipe.moe, recipe.stage),
            callbacks=[MetricsFile(folder.metrics), progress],
            max_shard_gb=recipe.output.max_shard_gb,
        )
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    trained = folder.trained(isinstance(model, PeftModel))
    trainer.save_trained(trained)
    entries, steps = trainer.state.log_history, trainer.state.global_step
    divergence = next((entry["divergence"] for entry in reversed(entries) if "divergence" in entry), float("nan"))
    held_out = next((entry["eval_loss"] for entry in reversed(entries) if "eval_loss" in entry), None)
    finished = Finished()
    if run.is_main:
        finished = finish(run, model, trained, draw_distillation_plots, prepared.report.lines(), description)
        run.say(f"Done: {steps:,} steps, divergence from the teacher {divergence:.4f}. {trained}")
    wait_for_everyone()
    return TopKResult(folder.path, cache.folder, trained, finished.merged, steps, divergence, held_out, finished.plots)
