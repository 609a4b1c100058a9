"""Progress over rows: a bar with the time left on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from ..progress import Bars

LINE_EVERY_S = 15.0


@contextmanager
def row_progress(console: Console, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give the callback that is told how many more of `total` rows are done; a last line says how long they took."""
    start = time.monotonic()
    with Bars(console) as bars:
        if console.is_terminal:
            bar = bars.add_task(description, total=total)
            yield lambda number: bars.advance(bar, number)
        else:
            yield _lines(console, description, total)
    console.print(f"  {description}: {total:,} in {time.monotonic() - start:.0f} s")


def _lines(console: Console, description: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(number: int) -> None:
        nonlocal done, last
        done += number
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done < total:
            left = (now - start) / done * (total - done)
            console.print(f"  {description}: {done:,} of {total:,}, about {left:.0f} s left")
            last = now

    return advance
