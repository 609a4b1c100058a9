"""Progress on the terminal: bars with the time left, and a line per validation that also stays in a log file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TextColumn

from ..progress import Bars
from .train import StepRecord, ValidationRecord


@contextmanager
def training_progress(
    console: Console, steps: int
) -> Iterator[tuple[Callable[[StepRecord], None], Callable[[ValidationRecord], None]]]:
    """Show a bar over `steps`; give the callbacks that move it: one for steps, one for validations."""
    with Bars(console, TextColumn("{task.fields[measured]}")) as progress:
        bar = progress.add_task("steps", total=steps, measured="")
        last_loss = float("nan")
        accuracy = "-"

        def show() -> None:
            progress.update(bar, measured=f"loss {last_loss:.3f} · validation accuracy {accuracy}")

        def on_step(record: StepRecord) -> None:
            nonlocal last_loss
            last_loss = record.lm_loss
            progress.update(bar, completed=record.step)
            show()

        def on_validation(record: ValidationRecord) -> None:
            nonlocal accuracy
            accuracy = f"{record.accuracy.value * 100:.1f} %"
            console.print(f"  step {record.step:>5}   loss {last_loss:.3f}   validation accuracy {accuracy:>7}")
            show()

        yield on_step, on_validation


@contextmanager
def counting_progress(console: Console, description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar over `total`; give the callback that moves it by one."""
    with Bars(console) as progress:
        bar = progress.add_task(description, total=total)
        yield lambda: progress.advance(bar)
