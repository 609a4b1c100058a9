"""Live progress of an upload: a bar with rate and time left on a terminal, lines of text elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from ..byte_progress import byte_bar, describe_bytes
from ..progress import LINE_EVERY_S


class Transfer:
    """Bytes that went up or were found there already; any thread may add to them."""

    def __init__(self, console: Console, bar: Progress, total: int):
        """Show `total` bytes on `bar`, or on lines where `console` is no terminal."""
        self.num_sent = 0
        self.num_kept = 0
        self._console = console
        self._bar = bar
        self._total = total
        self._task = bar.add_task("uploading", total=total)
        self._lock = threading.Lock()
        self._begun = self._last_line = time.monotonic()

    def add(self, num_bytes: int, *, is_sent: bool = True) -> None:
        """Count bytes; those not sent were there from before."""
        with self._lock:
            if is_sent:
                self.num_sent += num_bytes
            else:
                self.num_kept += num_bytes
            self._bar.advance(self._task, num_bytes)
            now = time.monotonic()
            if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
                self._last_line = now
                self._print(now)

    def name(self, text: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=text)

    def _print(self, now: float) -> None:
        rate = self.num_sent / (now - self._begun)
        line = describe_bytes("uploaded", self.num_sent + self.num_kept, self._total, rate)
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def transfer_progress(console: Console, total: int) -> Iterator[Transfer]:
    """Give what counts the bytes of an upload and shows them on `console`; the bar is gone when the block ends."""
    with byte_bar(console) as bar:
        yield Transfer(console, bar, total)
