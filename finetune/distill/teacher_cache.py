"""The cache of a run's teacher: where it is, what is missing of it, and the teacher that makes that."""

import gc
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import wait_for_everyone
from datasets import Dataset
from pyarrow.compute import sum as sum_of  # pyright: ignore[reportAttributeAccessIssue]
from transformers import PreTrainedTokenizerBase

from ..errors import RecipeError
from ..evaluation.progress import row_progress
from ..published import public_name
from ..recipe import TopKRecipe
from ..run import Run
from ..run_folder import RunFolder
from .teacher import check_vocabularies, load_teacher, load_teacher_tokenizer
from .topk_files import MANIFEST, is_whole, read_manifest
from .topk_reader import TopKCache
from .topk_writer import write_topk

# How often other processes look whether the first has finished.
LOOK_EVERY_S = 1.0


def cache_folder(recipe: TopKRecipe) -> Path:
    """Return where the recipe's cache is, or is to be."""
    return Path(recipe.cache.dir).expanduser() if recipe.cache.dir else RunFolder.of(recipe).teacher_topk


def check_cache(recipe: TopKRecipe, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many logits a cache that is yet to be made will be of; None where it is there and whole.

    Raises:
        RecipeError: it is not, and there is no teacher; or teacher and student do not write the same tokens.
        DataError: there is one of another teacher or other settings, or one that is damaged.
        AdapterError: the teacher is an adapter that cannot be read.
    """
    folder, teacher = cache_folder(recipe), recipe.teacher
    if is_whole(folder):
        if teacher is not None:
            there = read_manifest(folder)
            wanted = replace(
                there,
                teacher=public_name(teacher.path),
                revision=teacher.revision,
                num_tokens=recipe.cache.num_tokens,
                temperature=recipe.cache.temperature,
            )
            there.check_same(wanted, folder)
        return None
    if teacher is None:
        raise RecipeError(
            f"teacher is null, and {folder} holds no whole cache of a teacher's tokens; allowed: a teacher, or "
            "cache.dir with a whole one"
        )
    return check_vocabularies(recipe.model, tokenizer, teacher, load_teacher_tokenizer(teacher))


def complete_cache(
    run: Run[TopKRecipe], rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_shared: int | None
) -> TopKCache:
    """Return the cache of `rows`, after letting the teacher make what is missing; the first process does that.

    Args:
        run: whose recipe says who and where.
        rows: as `data.prepare` makes them.
        tokenizer: the student's, which has written them.
        num_shared: what `check_cache` has returned.

    Raises:
        RecipeError: the teacher cannot be loaded, or the settings do not fit it.
        DataError: the folder holds the cache of other data, or one that is damaged; or a row has nothing to learn.
        AdapterError: the teacher is an adapter that is damaged.
        CheckpointError: its files are damaged.
        TrainingError: it gives no numbers, or its tokens cannot be written.
    """
    folder = cache_folder(run.recipe)
    if run.is_main and num_shared is not None:
        _let_teacher_read(run, rows, tokenizer, num_shared, folder)
    # Not at a barrier, which gives up after minutes: a teacher may read for hours.
    while not is_whole(folder):
        time.sleep(LOOK_EVERY_S)
    wait_for_everyone()
    return TopKCache(folder)


def _let_teacher_read(
    run: Run[TopKRecipe], rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_shared: int, folder: Path
) -> None:
    settings = run.recipe.teacher
    assert settings is not None
    teacher = load_teacher(settings)
    if settings.device_map is None:
        teacher.to(run.config.device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    total: int = sum_of(rows.data.column("assistant_masks").combine_chunks().flatten()).as_py()
    there = sum(shard.num_tokens for shard in read_manifest(folder).shards) if (folder / MANIFEST).exists() else 0
    run.say(f"{public_name(settings.path)} reads {total:,} tokens; {there:,} of them are in {folder} already")
    with row_progress(run.console, "tokens read by the teacher", max(0, total - there)) as advance:
        write_topk(
            teacher,
            tokenizer,
            rows,
            folder,
            run.recipe.cache,
            name=settings.path,
            revision=settings.revision,
            num_shared=num_shared,
            on_tokens=advance,
        )
    # Its memory is the student's from here on.
    del teacher
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
