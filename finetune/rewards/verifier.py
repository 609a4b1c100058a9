"""Questions to other processes, with a time limit that holds in any thread and for any computation.

Signals, which libraries use to stop themselves, reach the main thread only, and no long multiplication. A process is
started for each question that is asked at the same time, kept for the next one, and ended when it takes too long.
"""

import contextlib
import json
import os
import queue
import selectors
import subprocess
import tempfile
import time
import weakref
from functools import lru_cache
from typing import Any

from ..errors import RewardError
from .sandbox.process import installed_paths, python_command, python_folders

# Importing sympy on a busy machine takes seconds.
START_TIMEOUT_S = 120.0


def ask(module: str, request: Any, timeout_s: float) -> Any:
    """Return what `check` of a module of this package says to a request; both are values as JSON has them.

    Raises:
        RewardError: it took longer than `timeout_s`, raised, or ended the process.
    """
    # A process that was forked must not use those of the one before.
    idle = _idle_processes(module, os.getpid())
    try:
        process = idle.get_nowait()
    except queue.Empty:
        process = _Process(module)
    try:
        answer = process.ask(request, timeout_s)
    except BaseException:
        process.end()
        raise
    idle.put(process)
    if "error" in answer:
        raise RewardError(f"{module}: {answer['error']}")
    return answer["value"]


@lru_cache(maxsize=16)
def _idle_processes(module: str, pid: int) -> queue.SimpleQueue["_Process"]:
    return queue.SimpleQueue()


class _Process:
    """One process; not to be asked by two threads at once."""

    def __init__(self, module: str):
        arguments = [module, json.dumps(installed_paths()), json.dumps(python_folders())]
        self._module, self._unread = module, b""
        # Read when the process ends, so it lives as long as this object.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            python_command("verifier_process", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        # Also when nobody asks any more, or this process ends.
        self._finalizer = weakref.finalize(self, _end, self._process)
        self._read_line(START_TIMEOUT_S)

    def ask(self, request: Any, timeout_s: float) -> dict[str, Any]:
        """Return the answer; raises RewardError."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._read_line(timeout_s)

    def end(self) -> None:
        """End the process."""
        self._finalizer()

    def _read_line(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise RewardError(f"{self._module} took longer than {timeout_s:g} s")
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    raise RewardError(f"{self._module}: its process ended: {self._say_why()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _say_why(self) -> str:
        code = self._process.wait()
        size = os.fstat(self._errors.fileno()).st_size
        lines = os.pread(self._errors.fileno(), 4096, max(0, size - 4096)).decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit status {code}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
