"""What the stages have in common: a run in its folder, from the checks to the errors that say where it can go on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate.utils import wait_for_everyone
from peft import PeftModel
from rich.console import Console
from transformers.utils import logging

from .atomic_files import write_text
from .checkpoints import last_checkpoint, num_processes_of, step_of
from .engines import check_engine, is_lost_process
from .errors import RecipeError, TrainingError
from .lora.attach import adapted_table
from .metrics import keep_until
from .recipe import TrainingRecipe, as_yaml
from .run_folder import RunFolder, check_run_folder, locked
from .step_rows import write_rows
from .training_model import describe

R = TypeVar("R", bound=TrainingRecipe)

_SMALLER = (
    "lower trainer.per_device_train_batch_size (and raise trainer.gradient_accumulation_steps by as much), "
    "lower {length}, or set trainer.gradient_checkpointing: true"
)


@dataclass(frozen=True)
class Run(Generic[R]):
    """One process's part in a run: `checkpoint` is where it goes on from, `is_main` whether it writes and speaks."""

    recipe: R
    folder: RunFolder
    config: Any
    console: Console
    checkpoint: Path | None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.config.process_index == 0

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, markup=False, soft_wrap=True)

    def show(self, model: Any) -> list[str]:
        """Return lines that say what is trained, after printing them, and an adapter's table."""
        lines = describe(model, self.recipe)
        # The table says the first of these lines in its title.
        for line in lines[isinstance(model, PeftModel) :]:
            self.say(line)
        if isinstance(model, PeftModel):
            self.console.print(adapted_table(model))
        return lines

    def begin(self) -> None:
        """Make the folder a run's, and say where it goes on from; all that can be checked has been."""
        if self.is_main:
            # First, because anything else without it is no run, and a folder with files that are no run's is refused.
            write_text(self.folder.recipe, as_yaml(self.recipe))
            write_rows(self.folder.path, self.recipe.trainer)
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            if self.folder.metrics.exists():
                keep_until(self.folder.metrics, step_of(self.checkpoint) if self.checkpoint else 0)
        if self.checkpoint is not None:
            self.say(f"Going on from step {step_of(self.checkpoint):,}: {self.checkpoint}")
            if (before := num_processes_of(self.checkpoint)) != self.config.world_size:
                now = f"saved by {before} processes, and there are {self.config.world_size} now"
                self.say(f"It was {now}: the rest will not be bit by bit what it would have been")


@contextmanager
def running(recipe: R, config: Any, resume: bool, console: Console | None) -> Iterator[Run[R]]:
    """Give the run of a recipe, its folder checked and locked; `recipe` is complete, `config` is TRL's.

    Raises:
        RecipeError: the folder is taken, or holds nothing to go on with, or what another engine has left, or the GPUs
            are not to be used like this.
        TrainingError: what happens inside had to stop; says where it can go on from.
        KeyboardInterrupt: after saying so.
    """
    folder = RunFolder.of(recipe)
    check_run_folder(recipe, resume)
    if checkpoint := last_checkpoint(folder.checkpoints):
        check_engine(checkpoint, num_processes_of(checkpoint), config.world_size)
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
    quiet = nullcontext() if console.is_terminal else without_bars()
    length = "data.max_tokens" if hasattr(recipe, "data") else "trainer.max_completion_length"
    with lock, _errors_explained(folder, console, _SMALLER.format(length=length)), quiet:
        yield Run(recipe, folder, config, console, last_checkpoint(folder.checkpoints))


@contextmanager
def without_bars() -> Iterator[None]:
    """Leave the terminal to the progress of training: transformers has a bar for each save."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@contextmanager
def _errors_explained(folder: RunFolder, console: Console, smaller: str) -> Iterator[None]:
    """Say where the run can go on from, whatever ends it, and what to make `smaller` where memory is full."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Stopped: {_where_to_go_on(folder)}", markup=False, soft_wrap=True)
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full; {smaller}. {_where_to_go_on(folder)}") from error
    except (MemoryError, RuntimeError) as error:
        if is_lost_process(error):
            raise TrainingError(
                "another process of this run has ended, so this one stops, too; its own message, or the launcher's, "
                f"says why. {_where_to_go_on(folder)}"
            ) from error
        # torch has no class of its own for a CPU's memory that is full.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(f"this machine's memory is full; {smaller}. {_where_to_go_on(folder)}") from error
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
