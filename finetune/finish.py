"""What a run leaves when training is done: figures, the merged model, and the draft of a model card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .atomic_files import write_text
from .card import RunFacts, make_card
from .lora.merge import merge_adapter
from .metrics import Entry, read_metrics
from .recipe import TrainingRecipe
from .run import Run
from .training_model import find_seeklet


@dataclass(frozen=True)
class Finished:
    """The figures by name, and the adapter merged into its model where that was asked for."""

    plots: dict[str, Path] = field(default_factory=dict)
    merged: Path | None = None


def finish(
    run: Run[Any],
    model: Any,
    trained: Path,
    draw: Callable[[Sequence[Entry], Path], dict[str, Path]],
    data: Sequence[str],
    description: Sequence[str],
) -> Finished:
    """Return what is left beside the trained model, after writing it; in the main process alone.

    Args:
        run: whose recipe says what is wanted.
        model: as trained.
        trained: where it was saved.
        draw: writes the figures of metrics into a folder.
        data: lines of the card that say what the data was.
        description: lines of the card that say what was trained.

    Raises:
        AdapterError: the adapter cannot be merged.
        CheckpointError: the files of its base are damaged.
        OSError: writing fails.
    """
    recipe, folder = run.recipe, run.folder
    entries = read_metrics(folder.metrics)
    plots = draw(entries, folder.plots) if recipe.output.plots else {}
    merged = None
    if recipe.output.merge:
        merged, dtype = folder.merged, recipe.output.merge_dtype
        merge_adapter(
            trained,
            merged,
            _base(recipe),
            dtype=None if dtype in ("auto", "fp8") else getattr(torch, dtype),
            # Weights that were kept in block-fp8 stay in it, and what they take of disk and memory.
            fp8=dtype == "fp8" or (dtype == "auto" and recipe.model.fp8 == "keep"),
            overwrite=True,
            revision=recipe.model.revision,
            max_shard_gb=recipe.output.max_shard_gb,
        )
    facts = RunFacts(
        recipe=recipe,
        entries=entries,
        data=[line.replace(str(folder.skipped_rows), folder.skipped_rows.name) for line in data],
        model=description,
        plots={name: file.relative_to(folder.path) for name, file in plots.items()},
        trained=trained.relative_to(folder.path),
        is_seeklet=find_seeklet(model) is not None,
    )
    write_text(folder.card, str(make_card(facts)))
    return Finished(plots, merged)


def _base(recipe: TrainingRecipe) -> Path | str:
    base = Path(recipe.model.path).expanduser()
    return base if base.exists() else recipe.model.path
