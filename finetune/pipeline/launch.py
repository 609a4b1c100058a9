"""A stage in processes of its own, which end when the one that started them does, however that ends."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import TrainingError
from ..recipe import RolloutRecipe
from .load import find_program
from .settings import Stage

# Of <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
# accelerate launch stops its workers when it is told to end, and kills those that do not after 30 s.
PATIENCE_S = 60


def run_launched(stage: Stage, recipe: Path, resume: bool) -> None:
    """Carry out a recipe's file with the words of the stage's `launch`, and wait for the end.

    Raises:
        TrainingError: it did not end well; what it said stands above.
        KeyboardInterrupt: Ctrl-C, which its processes were sent too, when they have ended.
    """
    command = "rollout" if isinstance(stage.recipe, RolloutRecipe) else "train"
    program = find_program(stage.launch[0])
    assert program is not None
    words = [program, *stage.launch[1:], "-m", "seeklet.finetune", command, str(recipe)]
    process = subprocess.Popen([*words, "--resume"] if resume else words, preexec_fn=_die_with_parent())
    try:
        code = process.wait()
    except BaseException:
        _stop(process)
        raise
    if code == -signal.SIGINT or code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(f"stage {stage.name} {ended}; it has said why above. --resume goes on with it")


def _stop(process: subprocess.Popen) -> None:
    """Wait for a process that was told to end already, and see to it that it does."""
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls so that it is told to end when this one has ended; Linux only."""
    if sys.platform != "linux":
        return None
    # Looked up here: between fork and exec there may be nobody left to hold the locks that imports take.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def call() -> None:
        # SIGTERM and not SIGKILL: accelerate launch then ends its workers, which are no children of ours.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return call
