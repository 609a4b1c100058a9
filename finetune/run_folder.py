"""The folder of one run: what lies where in it, who may write to it, and whether a run may begin or go on there."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .checkpoints import last_checkpoint, remove_unfinished, step_of
from .errors import RecipeError, TrainingError
from .recipe import TrainingRecipe, as_yaml
from .recipe.checks import CACHE
from .step_rows import BATCH_SETTINGS, check_rows

# Of the trainer's settings, those that may change when a run goes on: they change no weight.
FREE_TRAINER_SETTINGS = (
    *("logging_", "save_", "report_to", "run_name", "dataloader_", "per_device_eval_batch_size"),
    "expert_parallel",
)
# Sections by which a run that goes on would become another run.
FIXED_SECTIONS = (
    "stage",
    "model",
    "teacher",
    "data",
    "prompts",
    "rewards",
    "rollout",
    "cache",
    "distillation",
    "adapter",
    "moe",
    "trainer",
)
# What may lie in the folder before a run begins: an evaluation of the model as it was, and the rows that were left out
# by one that ended before its first step.
_HARMLESS = (
    *("evaluation.md", "evaluation.json", "evaluation.png", "reasoning.md", "reasoning.json", "reasoning.png"),
    "skipped_rows.jsonl",
)


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    `runs/<name>/` holds `recipe.yaml` (with every default that decides the result), `metrics.jsonl`,
    `skipped_rows.jsonl` and `checkpoints/checkpoint-N/`; when training is done also `adapter/` or `model/`, `merged/`,
    `plots/`, `README.md`.
    """

    path: Path

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> "RunFolder":
        """Return the folder of the recipe's run."""
        return cls(Path(recipe.output.dir).expanduser())

    @property
    def recipe(self) -> Path:
        """The resolved recipe; its presence tells a run from another folder."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line for each entry of the log."""
        return self.path / "metrics.jsonl"

    @property
    def skipped_rows(self) -> Path:
        """The rows of the data that were left out, each with its reason."""
        return self.path / "skipped_rows.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder of the figures."""
        return self.path / "plots"

    @property
    def card(self) -> Path:
        """The draft of the model card."""
        return self.path / "README.md"

    @property
    def teacher_topk(self) -> Path:
        """The cache of a teacher's most likely tokens, where the recipe names no other place."""
        return self.path / CACHE

    def trained(self, is_adapter: bool) -> Path:
        """Return where the result of training goes."""
        return self.path / ("adapter" if is_adapter else "model")

    @property
    def merged(self) -> Path:
        """The adapter merged into its model, where the recipe asks for it."""
        return self.path / "merged"


def check_run_folder(recipe: TrainingRecipe, resume: bool) -> RunFolder:
    """Return the folder of the recipe's run, after checking that the run may begin there, or go on.

    Raises:
        RecipeError: there is something in the folder and the run is not to go on; or it is to go on, and the folder
            holds no run, or one of another recipe, or of steps with another number of rows.
    """
    folder = RunFolder.of(recipe)
    found = _entries(folder.path)
    if not resume:
        if found:
            raise RecipeError(_say_taken(folder))
        return folder
    if not folder.recipe.is_file():
        what = "holds no run (no recipe.yaml)" if found else "does not exist or is empty"
        raise RecipeError(f"output.dir: {folder.path} {what}, so there is nothing to go on with; leave out --resume")
    changed = changed_keys(yaml.safe_load(folder.recipe.read_text(encoding="utf-8")), yaml.safe_load(as_yaml(recipe)))
    only_batches = {key for key, _, _ in changed} <= {f"trainer.{name}" for name in BATCH_SETTINGS}
    if changed and not (only_batches and check_rows(folder.path, recipe.trainer)):
        key, before, now = changed[0]
        more = f", and {len(changed) - 1} more keys differ" if len(changed) > 1 else ""
        raise RecipeError(
            f"{key}: is {now!r}, but the run in {folder.path} began with {before!r}{more}; a run goes on with what it "
            "began with, so set it back, or begin a new run in another output.dir"
        )
    return folder


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep the folder to this process while the block runs; made if need be. What killed saves left is removed.

    Raises:
        TrainingError: another process trains there.
        OSError: the folder cannot be made or written.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("a") as file:
        try:
            # Of the open file, so that it is gone with the process, however that ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training in {folder.path}; wait for it, or stop it") from None
        for place in (folder.path, folder.checkpoints, folder.plots):
            remove_unfinished(place)
        yield


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value before, value now) of what must not change between the parts of one run."""
    changed = []
    for section in FIXED_SECTIONS:
        old, new = before.get(section), now.get(section)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            changed += [(section, old, new)] if old != new else []
            continue
        for key in sorted({*old, *new}):
            if section == "trainer" and key.startswith(FREE_TRAINER_SETTINGS):
                continue
            if old.get(key) != new.get(key):
                changed.append((f"{section}.{key}", old.get(key), new.get(key)))
    return changed


def _entries(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return [entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.name not in _HARMLESS]


def _say_taken(folder: RunFolder) -> str:
    if not folder.recipe.is_file():
        return f"output.dir: {folder.path} holds files and no run; name a folder that is new or empty"
    last = last_checkpoint(folder.checkpoints)
    where = f"a run with a checkpoint at step {step_of(last)}" if last else "a run without a checkpoint yet"
    return (
        f"output.dir: {folder.path} holds {where}. Go on with it: --resume. Begin another: output.dir=NEW, or delete "
        "the folder first"
    )
