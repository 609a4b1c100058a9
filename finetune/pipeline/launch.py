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
# As `seeklet.finetune`, but ended with its launcher.
WORKER = "seeklet.finetune.pipeline.worker"
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
    words = [program, *stage.launch[1:], "-m", WORKER, command, str(recipe)]
    process = subprocess.Popen([*words, "--resume"] if resume else words, preexec_fn=_die_with_parent(os.getpid()))
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


def end_with_parent() -> None:
    """Have this process told to end when the one that started it has ended; Linux only."""
    if (call := _die_with_parent(os.getppid())) is not None:
        call()


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what a process calls so that it is told to end when its parent has ended; Linux only."""
    if sys.platform != "linux":
        return None
    # Looked up here: between fork and exec there may be nobody left to hold the locks that imports take.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def call() -> None:
        # SIGTERM and not SIGKILL: a launcher of several workers then ends them in good order.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return call
