"""Processes that share work without a model between them: which one this is, and how it waits for the others."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import PartialState

from .errors import RecipeError
from .evaluation.models import num_processes

# Some have the long completions: those that are done wait for hours, and the usual limit is ten minutes.
LONGEST_WAIT = timedelta(days=30)


class Workers(NamedTuple):
    """This process's number, how many there are, and a function that returns when all have called it."""

    rank: int
    number: int
    wait: Callable[[], object]


def join_workers() -> Workers:
    """Return this process's place among those that accelerate launch has started; call it in all of them.

    Raises:
        RecipeError: there are more of them on this machine than GPUs.
    """
    if num_processes() == 1:
        return Workers(0, 1, lambda: None)
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < gpus < here:
        raise RecipeError(f"{here} processes were started, and there are {gpus} GPUs; allowed: one process for each")
    # Left to itself it takes processes without an accelerator for single ones.
    state = PartialState(cpu=not torch.accelerator.is_available())
    # Not NCCL, which would keep the GPU busy with waiting.
    group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Workers(state.process_index, state.num_processes, lambda: dist.barrier(group=group))
