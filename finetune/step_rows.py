"""Rows of an optimiser step: processes x micro-batch x accumulation, each of which may change when a run goes on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_files import write_text
from .errors import RecipeError

BATCH_SETTINGS = ("gradient_accumulation_steps", "per_device_train_batch_size")
# In the run's folder: the recipe does not say how many processes there were.
FILE = ".rows_per_step"


def rows_of_step(trainer: Mapping[str, Any]) -> int:
    """Return the rows of a step of as many processes as this one is one of."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return processes * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]


def write_rows(folder: Path, trainer: Mapping[str, Any]) -> None:
    """Write them down in the folder of a run."""
    write_text(folder / FILE, f"{rows_of_step(trainer)}\n")


def check_rows(folder: Path, trainer: Mapping[str, Any]) -> bool:
    """Return whether a run may go on with another micro-batch or accumulation: its steps have the same rows as before.

    False where that cannot be known, or where the order of rows depends on more than their number.

    Raises:
        RecipeError: a step would have more or fewer rows.
    """
    file = folder / FILE
    by_place = trainer.get("train_sampling_strategy", "random") in ("random", "sequential")
    if not file.is_file() or not by_place or "steps_per_generation" in trainer:
        return False
    before, now = int(file.read_text(encoding="utf-8")), rows_of_step(trainer)
    if before == now:
        return True
    micro, accumulated = trainer["per_device_train_batch_size"], trainer["gradient_accumulation_steps"]
    processes = now // micro // accumulated
    accumulation, rest = divmod(before, processes * micro)
    advice = f"trainer.gradient_accumulation_steps={accumulation}" if not rest else f"a divisor of {before} processes"
    raise RecipeError(
        f"trainer.gradient_accumulation_steps: {processes} processes x {micro} rows x {accumulated} make {now} rows a "
        f"step, but the run in {folder} has {before}; go on with {advice}"
    )
