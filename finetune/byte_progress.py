"""Live progress in bytes: a bar with rate and time left on a terminal, lines of text elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .progress import LINE_EVERY_S

_LOOK_EVERY_S = 0.5
Advance = Callable[[int], None]


def byte_bar(console: Console) -> Progress:
    """Return a bar of bytes with rate and time left; gone when done, and nothing at all without a terminal."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def byte_progress(console: Console, what: str, total: int | None) -> Iterator[Advance]:
    """Give what counts bytes of `what`, and shows them on `console` until the block ends; `total` may be unknown."""
    begun = last_line = time.monotonic()
    done = 0
    with byte_bar(console) as bar:
        task = bar.add_task(what, total=total)

        def advance(num_bytes: int) -> None:
            nonlocal done, last_line
            done += num_bytes
            bar.advance(task, num_bytes)
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= LINE_EVERY_S:
                last_line = now
                line = describe_bytes(what, done, total, done / (now - begun))
                console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield advance


@contextmanager
def growth_progress(console: Console, what: str, folder: Path, total: int | None) -> Iterator[None]:
    """Show how many bytes were written to `folder` since the block began."""
    ended = threading.Event()
    with byte_progress(console, what, total) as advance:
        counted = _count_bytes(folder)

        def look() -> None:
            nonlocal counted
            while not ended.wait(_LOOK_EVERY_S):
                now = _count_bytes(folder)
                advance(max(0, now - counted))
                counted = max(counted, now)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def describe_bytes(what: str, done: int, total: int | None, bytes_per_s: float) -> str:
    """Return a line: checked 120 of 300 MB · 55.0 MB/s · 0:00:03 left."""
    of = "" if total is None else f" of {total / 1e6:,.0f}"
    left = ""
    if total is not None and bytes_per_s > 0:
        left = f" · {timedelta(seconds=round(max(0, total - done) / bytes_per_s))} left"
    return f"  {what} {done / 1e6:,.0f}{of} MB · {bytes_per_s / 1e6:,.1f} MB/s{left}"


def _count_bytes(folder: Path) -> int:
    num_bytes = 0
    for path in folder.rglob("*"):
        try:
            num_bytes += 0 if path.is_symlink() else path.stat().st_size
        except FileNotFoundError:
            # It was renamed while the folder was read.
            continue
    return num_bytes
