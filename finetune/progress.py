"""Live progress of training: a bar with the time left and the last figures on a terminal, lines of text elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Without a terminal, as into a log file, lines of training come no faster than this; others always come.
LINE_EVERY_S = 5.0


class Bars(Progress):
    """Bars with the time left, and a line of text below; gone when done, and nothing at all without a terminal."""

    def __init__(self, console: Console, *columns: ProgressColumn):
        """Show on `console`, with `columns` behind each bar."""
        self.below = ""
        super().__init__(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return what is shown: the bars, and the text if there is any."""
        yield from super().get_renderables()
        if self.below:
            yield Text(f"  {self.below}", overflow="ellipsis", no_wrap=True)


@contextmanager
def training_progress(console: Console) -> Iterator["ProgressCallback"]:
    """Give the callback that shows the progress of a Trainer on `console`; the bar is gone when the block ends."""
    with Bars(console) as bars:
        yield ProgressCallback(console, bars)


class ProgressCallback(TrainerCallback):
    """Shows the steps done and left, the last figures logged, validations and checkpoints; in the main process only."""

    def __init__(self, console: Console, bars: Bars):
        """Print to `console`, on which `bars` are shown, if it is a terminal."""
        self._console = console
        self._bars = bars
        self._steps: Any = None
        self._validation: Any = None
        self._begun = self._last_line = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin at the step the run begins at."""
        if state.is_world_process_zero:
            self._begun, self._first_step = time.monotonic(), state.global_step
            self._steps = self._bars.add_task(
                "training", total=state.max_steps, completed=state.global_step, figures=""
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if state.is_world_process_zero:
            self._bars.update(self._steps, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures of training, or those of a validation."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            took = timedelta(seconds=round(logs.get("eval_runtime", 0)))
            self._print(state, f"validation loss {logs['eval_loss']:.4f} ({took})")
        elif "loss" in logs:
            figures = describe(logs)
            self._bars.below = figures
            now, is_last = time.monotonic(), state.global_step == state.max_steps
            if not self._console.is_terminal and (now - self._last_line >= LINE_EVERY_S or is_last):
                self._last_line = now
                left = "" if is_last else f" · {self._time_left(state)} left"
                self._print(state, figures + left)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Move the bar of the validation."""
        if state.is_world_process_zero and self._steps is not None:
            if self._validation is None:
                total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
                self._validation = self._bars.add_task("validation", total=total)
            self._bars.advance(self._validation)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the bar of the validation away."""
        if self._validation is not None:
            self._bars.remove_task(self._validation)
            self._validation = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that there is a checkpoint."""
        if state.is_world_process_zero:
            self._print(state, f"saved checkpoint-{state.global_step}")

    def _print(self, state: TrainerState, text: str) -> None:
        width = len(f"{state.max_steps:,}")
        line = f"  step {state.global_step:>{width},} of {state.max_steps:,}   {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _time_left(self, state: TrainerState) -> timedelta:
        done = max(1, state.global_step - self._first_step)
        per_step = (time.monotonic() - self._begun) / done
        return timedelta(seconds=round(per_step * (state.max_steps - state.global_step)))


def describe(logs: Mapping[str, Any]) -> str:
    """Return the figures of a training entry in a line: loss 2.310 · lr 1.0e-04 · 3,210 tokens/s · 1.2 GiB."""
    parts = [f"loss {logs.get('lm_loss', logs['loss']):.4f}"]
    if logs.get("reward") is not None:
        length = logs.get("completions/mean_length", 0.0)
        parts = [f"reward {logs['reward']:.3f}", f"{length:,.0f} tokens each"]
    elif logs.get("divergence") is not None:
        length = logs.get("completions/mean_length")
        parts = [f"divergence {logs['divergence']:.4f}", *([f"{length:,.0f} tokens each"] if length else [])]
    if "mtp_loss" in logs:
        parts.append(f"MTP {logs['mtp_loss']:.4f}")
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.1e}")
    if "tokens_per_s" in logs:
        parts.append(f"{logs['tokens_per_s']:,.0f} tokens/s")
    if "memory_gib" in logs:
        parts.append(f"{logs['memory_gib']:.1f} GiB")
    return " · ".join(parts)
