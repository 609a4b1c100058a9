"""How fast training is and what memory it takes: tokens per second of training alone, and the process's memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


class Throughput:
    """Counts tokens and the time spent on them; validations and checkpoints are left out of the time."""

    def __init__(self, device: torch.device):
        """Count on `device`, so that nothing waits for a GPU before `measure` is called."""
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._since = time.perf_counter()
        self._paused_s = 0.0

    def add(self, tokens: torch.Tensor | int) -> None:
        """Add the real tokens of a batch."""
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused_s += time.perf_counter() - start

    def measure(self) -> tuple[torch.Tensor, float]:
        """Return the tokens (scalar, of this process) and the seconds since the last call."""
        now = time.perf_counter()
        tokens, seconds = self._tokens.clone(), now - self._since - self._paused_s
        self._tokens.zero_()
        self._since, self._paused_s = now, 0.0
        return tokens, seconds


def memory_gib(device: torch.device) -> float:
    """Return the peak of what PyTorch reserved on a GPU, or what the process holds of the machine's memory, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
