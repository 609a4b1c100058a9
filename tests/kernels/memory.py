"""What an operator keeps and makes: the largest tensor of a call, and the tensors autograd saves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.library import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    def __init__(self, inside: Sequence[CustomOpDef]) -> None:
        super().__init__()
        self.numel = 0
        self.inside = {op._opoverload: op._init_fn for op in inside}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.inside:
            # An operator is one call to a mode; its function is run under it in the operator's place.
            with self:
                return self.inside[func](*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        # A view of a parameter takes no memory.
        if isinstance(output, torch.Tensor) and output.untyped_storage().data_ptr() not in self.storages(args):
            self.numel = max(self.numel, output.numel())
        return output

    @staticmethod
    def storages(args: Sequence[Any]) -> set[int]:
        """Return the addresses of the memory of the tensors among `args`."""
        return {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}


def largest_tensor_made(run: Callable[[], Any], inside: Sequence[CustomOpDef] = ()) -> int:
    """Return the number of elements of the largest tensor that any operation in `run` makes.

    Counted are also those made within the operators `inside`.
    """
    with _Largest(inside) as mode:
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
