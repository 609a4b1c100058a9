"""Conversion and quantization in a process of their own, with progress, and with their failure as one line."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..byte_progress import byte_bar
from ..errors import ExportError
from ..progress import LINE_EVERY_S
from .converter_source import Converter

_CHILD = Path(__file__).with_name("child.py")
_POLL_S = 0.1


def convert(converter: Converter, folder: Path, kind: str, name: str, out: Path, size: int, console: Console) -> None:
    """Write the model in `folder` to `out` as GGUF, weights as `kind`; `size` is about what it comes to, in bytes.

    Raises:
        ExportError: the converter gave up.
        OSError: it cannot be started.
    """
    arguments = [str(converter.script), str(folder), "--outfile", str(out), "--outtype", kind, "--model-name", name]
    _run(["convert", str(out), *arguments], f"converting to {kind}", out, size, console)


def quantize(source: Path, kind: str, out: Path, size: int, console: Console) -> None:
    """Write the GGUF file `source` to `out` with weights as `kind`.

    Raises:
        ExportError: llama.cpp gave up.
        OSError: it cannot be started.
    """
    arguments = [str(source), kind, str(os.cpu_count() or 1)]
    _run(["quantize", str(out), *arguments], f"quantizing to {kind}", out, size, console)


def _run(arguments: Sequence[str], text: str, out: Path, size: int, console: Console) -> None:
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C is this process's, which ends the other one by closing its standard input.
        child = subprocess.Popen(
            [sys.executable, str(_CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with _progress(console, text, size) as progress:
                while child.poll() is None:
                    progress.show(out.stat().st_size if out.exists() else 0)
                    time.sleep(_POLL_S)
        finally:
            if child.stdin is not None:
                child.stdin.close()
            child.wait()
        if child.returncode:
            log.seek(0)
            said = _last_line(log.read().decode("utf-8", errors="replace"))
            raise ExportError(f"{text}: llama.cpp gave up (exit code {child.returncode}): {said}")


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


class _Growth:
    """Shows how a file grows: on a bar, or in lines where there is no terminal."""

    def __init__(self, console: Console, bar: Progress, text: str, size: int):
        self._console, self._bar, self._text, self._size = console, bar, text, size
        self._task = bar.add_task(text, total=size)
        self._last_line, self._begun = time.monotonic(), 0.0

    def show(self, done: int) -> None:
        """Say that `done` bytes are there; the time left is by the rate since there were any."""
        self._bar.update(self._task, completed=done)
        now = time.monotonic()
        self._begun = self._begun or (now if done else 0.0)
        if self._console.is_terminal or now - self._last_line < LINE_EVERY_S:
            return
        self._last_line = now
        rate = done / (now - self._begun) if self._begun and now > self._begun else 0.0
        left = f" · {timedelta(seconds=round(max(0, self._size - done) / rate))} left" if rate else ""
        line = f"  {self._text}: {f'{done / 1e6:,.0f} of ' if done else ''}{self._size / 1e6:,.0f} MB{left}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(console: Console, text: str, size: int) -> Iterator[_Growth]:
    with byte_bar(console) as bar:
        yield _Growth(console, bar, text, size)
