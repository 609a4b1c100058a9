# The library leaves its decorator unannotated, and what pyright infers turns a layer into a plain object.
# This says that a hooked layer keeps its type; everything else of the library stays Any.
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=type[nn.Module])

def use_kernel_forward_from_hub(
    layer_name: str, condition: Callable[[nn.Module], bool] | None = None
) -> Callable[[Layer], Layer]: ...
def __getattr__(name: str) -> Any: ...
