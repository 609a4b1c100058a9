"""What a recipe of distillation would do; no weight is read, and no teacher asked."""

import math
from pathlib import Path

from rich.console import Console
from torch import nn

from ..data.prepare import prepare
from ..dry_run import (
    largest_batch,
    make_batch,
    show_bytes,
    show_data,
    show_model,
    show_prompts,
    show_recipe,
    trained_model,
)
from ..evaluation.models import load_tokenizer, num_processes
from ..prompts.prepare import prepare_prompts
from ..published import public_name
from ..recipe import DistillRecipe, ModelSettings, TopKRecipe
from ..trainer_settings import check_validation, complete, make_distill_config, make_topk_config
from ..training_model import check_drafts
from .teacher import build_meta_teacher
from .teacher_cache import cache_folder, check_cache
from .train_on_policy import load_tokenizers


def show_distill_dry_run(recipe: DistillRecipe, console: Console) -> None:
    """Print the whole recipe, its prompts and steps, the teacher, what is trained, and the memory that takes.

    Raises:
        RecipeError: student, teacher or adapter are not as the recipe says, or the two cannot be compared.
        DataError: the prompts cannot be used as the recipe says.
        AdapterError: the teacher is an adapter that cannot be read.
    """
    config = make_distill_config(recipe, Path(recipe.output.dir))
    recipe = complete(recipe, config)
    model, teacher = trained_model(recipe), build_meta_teacher(recipe.teacher)
    check_drafts(model, recipe.distillation.use_mtp, "distillation.use_mtp")
    tokenizer, _ = load_tokenizers(recipe)
    train, validation = prepare_prompts(recipe.prompts, tokenizer)
    check_validation(recipe, len(validation))
    samples = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_processes()
    # What does not fill a step is left for the next epoch.
    per_epoch = max(1, len(train) // samples)
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)
    assert config.max_completion_length is not None

    show_recipe(recipe, console)
    longest = show_prompts(tokenizer, train, validation, console)
    console.rule("steps")
    console.print(
        f"{total:,} optimizer steps of {samples:,} samples, one of each prompt, up to "
        f"{config.max_completion_length:,} tokens each; processes: {num_processes()}"
    )
    _show_teacher(recipe.teacher, teacher, console)
    tokens = longest + config.max_completion_length
    show_model(recipe, config, model, make_batch(config, model, tokens), console, teacher)


def show_topk_dry_run(recipe: TopKRecipe, console: Console) -> None:
    """Print the whole recipe, its data and steps, what the teacher has to read, what is trained, and the memory.

    Raises:
        RecipeError: student, teacher or adapter are not as the recipe says, or the two cannot be compared.
        DataError: data or cache cannot be used as the recipe says.
        AdapterError: the teacher is an adapter that cannot be read.
    """
    config = make_topk_config(recipe, Path(recipe.output.dir))
    recipe = complete(recipe, config)
    model, tokenizer = trained_model(recipe), load_tokenizer(recipe.model)
    num_shared = check_cache(recipe, tokenizer)
    prepared = prepare(recipe.data, tokenizer)
    check_validation(recipe, len(prepared.validation))

    show_recipe(recipe, console)
    show_data(config, prepared, console)
    if num_shared is None:
        console.rule("teacher")
        console.print(f"{cache_folder(recipe)} is whole: no teacher is needed", markup=False, soft_wrap=True)
    else:
        assert recipe.teacher is not None
        _show_teacher(recipe.teacher, build_meta_teacher(recipe.teacher), console)
        number = prepared.report.train.trained.total
        # A token's number, and a log-probability; one more of all others.
        each = recipe.cache.num_tokens * ((2 if num_shared <= 2**16 else 4) + 2) + 2
        console.print(
            f"It reads first, alone: {number:,} tokens, of each the {recipe.cache.num_tokens:,} most likely, "
            f"{show_bytes(number * each)} in {cache_folder(recipe)}",
            markup=False,
            soft_wrap=True,
        )
    show_model(recipe, config, model, largest_batch(recipe, config, prepared, model), console)


def _show_teacher(settings: ModelSettings, teacher: nn.Module, console: Console) -> None:
    tensors = [*teacher.parameters(), *teacher.buffers()]
    number = sum(parameter.numel() for parameter in teacher.parameters())
    size = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)
    console.rule("teacher")
    console.print(
        f"{public_name(settings.path)}: {number:,} parameters, {show_bytes(size)}", markup=False, soft_wrap=True
    )
