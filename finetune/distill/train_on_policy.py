"""On-policy distillation from a recipe to a trained student in the run's folder."""

from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase, set_seed

from ..evaluation.models import load_tokenizer
from ..finish import Finished, finish
from ..metrics import MetricsFile
from ..progress import training_progress
from ..prompts.prepare import as_dataset, as_text, prepare_prompts, set_template
from ..published import public_name
from ..reasoning import THINK
from ..recipe import DistillRecipe
from ..run import Run, running, without_bars
from ..run_folder import RunFolder
from ..trainer_settings import check_validation, check_vllm, complete, make_distill_config
from ..training_model import build_training_model, check_drafts, mtp_mode
from .on_policy import make_on_policy_trainer
from .plots import draw_distillation_plots
from .teacher import check_vocabularies, load_teacher, load_teacher_tokenizer, set_teacher_template
from .vocabulary import describe_split_tags


@dataclass(frozen=True)
class DistillResult:
    """What a run has left.

    Attributes:
        folder: the run's.
        trained: the adapter or the model.
        merged: the adapter merged into its model, where that was asked for.
        steps: optimiser steps that were done, those of earlier parts of the run included.
        divergence: the last of training: how far the student is from its teacher, in nats per token.
        plots: the figures by name.
    """

    folder: Path
    trained: Path
    merged: Path | None
    steps: int
    divergence: float
    plots: dict[str, Path]


def train(recipe: DistillRecipe, *, resume: bool = False, console: Console | None = None) -> DistillResult:
    """Return what training as the recipe says has left in its `output.dir`; what can be checked is checked first.

    With `resume` the run that is there goes on from its last checkpoint, and is bit by bit what it would have been.
    Under `accelerate launch` call it in every process; the first one writes and speaks.

    Raises:
        RecipeError: the recipe cannot be carried out, or the folder is taken, or holds nothing to go on with.
        DataError: the prompts cannot be used.
        AdapterError: an adapter cannot be saved, loaded or merged.
        CheckpointError: the files of student or teacher are damaged.
        TrainingError: training had to stop; says why, and where it can go on from.
        KeyboardInterrupt: after saying where the run can go on from.
    """
    check_vllm(recipe)
    config = make_distill_config(recipe, RunFolder.of(recipe).checkpoints)
    with running(complete(recipe, config), config, resume, console) as run:
        return _train(run)


def _train(run: Run[DistillRecipe]) -> DistillResult:
    recipe, folder = run.recipe, run.folder
    tokenizer, teacher_tokenizer = load_tokenizers(recipe)
    train, validation = prepare_prompts(recipe.prompts, tokenizer)
    check_validation(recipe, len(validation))
    counts = f"{len(train):,} prompts to train on, {len(validation):,} held out"
    run.say(counts)
    reasons = THINK in teacher_tokenizer.get_vocab() or THINK in str(teacher_tokenizer.chat_template)
    if (reasons or THINK in as_text(tokenizer, train[0])) and (warning := describe_split_tags(tokenizer)):
        run.say(f"warning: {warning}")
    set_seed(run.config.seed)
    model = build_training_model(recipe)
    check_drafts(model, recipe.distillation.use_mtp, "distillation.use_mtp")
    description = run.show(model)
    teacher = load_teacher(recipe.teacher)
    run.say(f"teacher: {public_name(recipe.teacher.path)}, {sum(p.numel() for p in teacher.parameters()):,} parameters")
    run.begin()
    with training_progress(run.console) as progress, without_bars():
        trainer = make_on_policy_trainer(
            recipe.distillation,
            model,
            teacher,
            run.config,
            tokenizer,
            teacher_tokenizer,
            as_dataset(train),
            as_dataset(validation) if validation else None,
            mtp_loss=mtp_mode(model, recipe.moe, recipe.stage),
            bias_update_speed=recipe.moe.bias_update_speed or 0.0,
            callbacks=[MetricsFile(folder.metrics), progress],
            max_shard_gb=recipe.output.max_shard_gb,
        )
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    trained = folder.trained(isinstance(model, PeftModel))
    trainer.save_trained(trained)
    entries, steps = trainer.state.log_history, trainer.state.global_step
    divergence = next((entry["divergence"] for entry in reversed(entries) if "divergence" in entry), float("nan"))
    finished = Finished()
    if run.is_main:
        finished = finish(run, model, trained, draw_distillation_plots, [counts], description)
        run.say(f"Done: {steps:,} steps, divergence from the teacher {divergence:.4f}. {trained}")
    wait_for_everyone()
    return DistillResult(folder.path, trained, finished.merged, steps, divergence, finished.plots)


def load_tokenizers(recipe: DistillRecipe) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Return those of student and teacher, with the templates that prompts are written with.

    Raises:
        RecipeError: one is not there, or the two cannot be compared as the recipe says.
        DataError: the student's has no template.
        AdapterError: the teacher is an adapter that cannot be read.
    """
    tokenizer, teachers = load_tokenizer(recipe.model), load_teacher_tokenizer(recipe.teacher)
    set_template(tokenizer, recipe.prompts)
    if recipe.distillation.alignment == "tokens":
        check_vocabularies(recipe.model, tokenizer, recipe.teacher, teachers)
    else:
        set_teacher_template(teachers)
    return tokenizer, teachers
