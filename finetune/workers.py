"""Processes that share work without a model between them: which one this is, and how it waits for the others."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import PartialState

from .evaluation.models import num_processes

# Some have the long completions: those that are done wait for hours, and the usual limit is ten minutes.
LONGEST_WAIT = timedelta(days=30)


class Workers(NamedTuple):
    """This process's number, how many there are, and a function that returns when all have called it."""

    rank: int
    number: int
    wait: Callable[[], object]


def join_workers() -> Workers:
    """Return this process's place among those that accelerate launch has started; call it in all of them."""
    if num_processes() == 1:
        return Workers(0, 1, lambda: None)
    # Left to itself it takes processes without an accelerator for single ones.
    state = PartialState(cpu=not torch.accelerator.is_available())
    # Not NCCL, which would keep the GPU busy with waiting.
    group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Workers(state.process_index, state.num_processes, lambda: dist.barrier(group=group))
