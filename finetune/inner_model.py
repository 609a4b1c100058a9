"""The model inside what training tools make of it."""

from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def find_inside(model: nn.Module, kind: type[Kind]) -> Kind | None:
    """Return the first of this class in what PEFT, accelerate, DDP, FSDP or torch.compile made of it, or None."""
    return next((module for module in model.modules() if isinstance(module, kind)), None)
