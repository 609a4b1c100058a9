"""What an operator keeps and makes: the largest tensor of a call, and the tensors autograd saves."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.numel = max(self.numel, output.numel())
        return output


def largest_tensor_made(run: Callable[[], Any]) -> int:
    """Return the number of elements of the largest tensor that any operation in `run` returns."""
    with _Largest() as mode:
        run()
    return mode.numel


def tensors_kept(run: Callable[[], Any]) -> dict[int, torch.Tensor]:
    """Return what autograd saves for backward while `run` runs, each tensor once, by its address."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return kept
