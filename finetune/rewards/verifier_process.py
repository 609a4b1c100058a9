"""A process that answers questions, one line of JSON each, until its input ends; see `verifier`.

Its first argument names the module here that has `check`, the second the folders to import from,
the third others that Python needs; both are lists in JSON.
"""

import contextlib
import json
import os
import resource
import sys
from importlib import import_module
from pathlib import Path

from .sandbox.inside import SYSTEM
from .sandbox.kernel import forgo_privileges, is_known_machine
from .sandbox.landlock import restrict_files
from .sandbox.seccomp import restrict_calls

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Answer until the input ends."""
    module, paths, readable = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    sys.path += paths
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    checks = import_module(f"{__package__}.{module}")
    checks.warm_up()
    _lock_in([*paths, *readable])
    _write(answers, {"ready": True})
    for line in sys.stdin:
        try:
            answer = {"value": checks.check(json.loads(line))}
        # Whatever a library raises on text made by a model is that question's answer.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        _write(answers, answer)


def _lock_in(readable: list[str]) -> None:
    """Forgo what is not needed to compare two texts, where the kernel offers that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if not is_known_machine():
        return
    folder = str(Path(__file__).resolve().parent)
    for step in (
        forgo_privileges,
        lambda: restrict_files((*SYSTEM, *readable, folder), ("/dev/null",)),
        restrict_calls,
    ):
        with contextlib.suppress(OSError):
            step()


def _write(answers, answer) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
