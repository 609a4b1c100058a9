"""Rejection sampling as a recipe says: from the model and its prompts to a data set in `output.dir`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from .atomic_files import write_text
from .errors import RecipeError
from .evaluation.models import load_weights
from .recipe import RolloutRecipe, as_yaml
from .rollout.dataset import Origin
from .rollout.report import RolloutReport, summary_table
from .rollout.run import ATTEMPTS, DATASET, UNSOLVED, fingerprint_weights, rollout
from .rollout.settings import RejectionSamplingSettings
from .run import without_bars
from .sampling_inputs import SamplingInputs, check_attempts, read_inputs, sampling_errors_told, say
from .training_model import check_drafts
from .workers import join_workers

RECIPE, FAILURES = "recipe.yaml", "reward_failures-{worker}.jsonl"
# What is kept of the attempts may change when a rollout goes on; what the attempts follow from may not.
FILTERS = (
    *("min_rewards", "requires_format", "requires_reasoning", "min_tokens", "max_tokens", "max_paragraph_characters"),
    *("max_foreign_share", "max_per_prompt", "prefer", "always_solved", "never_solved"),
)
FIXED_SECTIONS = ("stage", "model", "prompts", "rewards", "sampling")


def run_rollout(recipe: RolloutRecipe, *, resume: bool = False, console: Console | None = None) -> RolloutReport | None:
    """Return the report of the recipe's rollout; `dataset.jsonl` and the report are in `output.dir` then.

    With `resume` the one that is there goes on; one that is done is not sampled again, but filtered anew. Under
    `accelerate launch` call it in every process: they share the prompts, and all but the first return None.

    Raises:
        RecipeError: the recipe cannot be carried out, or the folder is taken, or holds nothing to go on with.
        DataError: the prompts cannot be used, or what was sampled is damaged.
        CheckpointError: the model's files are damaged.
        AdapterError: the adapter cannot be used.
        TrainingError: sampling had to stop.
        OSError: a file cannot be written.
        KeyboardInterrupt: after saying how to go on.
    """
    folder = Path(recipe.output.dir).expanduser()
    check_rollout_folder(recipe, folder, resume)
    workers = join_workers()
    console = (console or Console(highlight=False)) if workers.rank == 0 else Console(quiet=True)
    inputs, settings = plan_rollout(recipe, folder / FAILURES.format(worker=workers.rank))
    say(console, f"{len(inputs.prompts):,} prompts, {len(inputs.held_out):,} held out")
    # All have looked at the folder before one begins to fill it.
    workers.wait()
    advice = ", and begin in another output.dir, since samples follow from both; or go on with --resume elsewhere"
    # In a log file the bars of loading would be lines and lines.
    quiet = nullcontext() if console.is_terminal else without_bars()
    with _interruption_told(folder, console), sampling_errors_told("sampling", advice), quiet:
        model = load_weights(inputs.weights)
        check_drafts(model, settings.use_mtp, "sampling.use_mtp")
        folder.mkdir(parents=True, exist_ok=True)
        if workers.rank == 0 and not resume:
            write_text(folder / RECIPE, as_yaml(recipe))
        report = rollout(
            model,
            inputs.tokenizer,
            inputs.prompts,
            inputs.rewards,
            settings,
            folder,
            Origin(recipe.model.path, recipe.model.revision, fingerprint_weights(model)),
            held_out=inputs.held_out,
            console=console,
            worker=workers.rank,
            num_workers=workers.number,
            wait=workers.wait,
        )
        if report is None:
            return None
        # With the filters that made the data set.
        write_text(folder / RECIPE, as_yaml(recipe))
    console.print(summary_table(report))
    if settings.never_solved == "list" and (unsolved := report.difficulty["never"]):
        say(console, f"Never solved: {unsolved:,} prompts, in {folder / UNSOLVED}")
    say(console, f"Data set: {report.num_kept:,} rows in {folder / DATASET}")
    return report


def plan_rollout(
    recipe: RolloutRecipe, failures_file: Path | None = None
) -> tuple[SamplingInputs, RejectionSamplingSettings]:
    """Return what the recipe's rollout begins with, and its settings, after all checks that need no model.

    Raises:
        RecipeError: the adapter's base, a tokenizer or a reward is not to be had, or none tells what is right.
        AdapterError: the adapter cannot be read.
        DataError: the prompts cannot be used.
    """
    settings, prompts = recipe.sampling, recipe.prompts
    inputs = read_inputs(
        recipe.model,
        prompts,
        recipe.rewards,
        settings.chat_template,
        # The rollout leaves them out itself, and counts them.
        leave_out_long=False,
        failures_file=failures_file,
    )
    if prompts.on_long == "skip":
        settings = replace(
            settings, max_prompt_tokens=min(settings.max_prompt_tokens or prompts.max_tokens, prompts.max_tokens)
        )
    # The tokenizer has it now.
    settings = replace(settings, chat_template=None)
    check_attempts(inputs, settings, "sampling")
    return inputs, settings


def check_rollout_folder(recipe: RolloutRecipe, folder: Path, resume: bool) -> None:
    """Check that the recipe's rollout may begin in a folder, or go on there.

    Raises:
        RecipeError: there is something in it and the rollout is not to go on; or it is to go on, and there is none, or
            another one.
    """
    there = folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    begun = (folder / RECIPE).is_file()
    if not resume:
        if there:
            what = f"a rollout with attempts at {count_sampled(folder):,} prompts" if begun else "files and no rollout"
            advice = (
                "Go on with it: --resume. Begin another: output.dir=NEW, or delete the folder first"
                if begun
                else "name a folder that is new or empty"
            )
            raise RecipeError(f"output.dir: {folder} holds {what}{'. ' if begun else '; '}{advice}")
        return
    if not begun:
        what = "holds no rollout (no recipe.yaml)" if there else "does not exist or is empty"
        raise RecipeError(f"output.dir: {folder} {what}, so there is nothing to go on with; leave out --resume")
    changed = list(_changed_keys(_read_recipe(folder / RECIPE), yaml.safe_load(as_yaml(recipe))))
    if changed:
        key, old, new = changed[0]
        more = f", and {len(changed) - 1} more keys differ" if len(changed) > 1 else ""
        raise RecipeError(
            f"{key}: is {new!r}, but the rollout in {folder} began with {old!r}{more}; attempts follow from it, so set "
            "it back, or begin another rollout in another output.dir"
        )


def count_sampled(folder: Path) -> int:
    """Return how many prompts have their attempts in the folder's files."""
    lines = 0
    for file in folder.glob(ATTEMPTS.format(worker="*")):
        with file.open("rb") as stream:
            lines += max(0, sum(line.endswith(b"\n") for line in stream) - 1)
    return lines


def _read_recipe(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, Mapping):
        raise RecipeError(
            f"{file} is damaged; put the recipe that the rollout began with there, or name another folder"
        )
    return found


def _changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in FIXED_SECTIONS:
        old, new = before.get(section), now.get(section)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            if old != new:
                yield section, old, new
            continue
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key) and not (section == "sampling" and key in FILTERS):
                yield f"{section}.{key}", old.get(key), new.get(key)


@contextmanager
def _interruption_told(folder: Path, console: Console) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        begun = (folder / RECIPE).is_file()
        done = f"{count_sampled(folder):,} prompts have their attempts in {folder}; --resume goes on from there"
        say(console, f"Stopped: {done if begun else 'nothing was sampled'}")
        raise
