"""A kernel with its arguments, to be launched, or to be compiled for a GPU that is not here."""

from typing import Any, NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launch import Configuration

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """A kernel, the number of its programs, its arguments by name, warps and stages; tensors may be on "meta"."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3


def run(launch: Launch) -> None:
    """Launch on the current device; with no programs, do nothing."""
    if launch.programs:
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        launch.kernel[(launch.programs,)](**launch.arguments, **options)


def _signature(value: Any) -> str | None:
    """Return the type of an argument as triton finds it; None for one that is compiled in."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>".replace(" ", "")
    if isinstance(value, float):
        return "fp32"
    return "i32" if isinstance(value, int) and value != 1 else None


def configuration(name: str, launch: Launch, tensor_cores: bool, capabilities: tuple[int, ...]) -> Configuration:
    """Return how the kernel of a launch is compiled."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    found = {key: None if key in constants else _signature(value) for key, value in launch.arguments.items()}
    numbers = {key: value for key, value in launch.arguments.items() if found[key] == "i32"}
    return Configuration(
        name,
        launch.kernel,
        {key: kind for key, kind in found.items() if kind is not None},
        {key: launch.arguments[key] for key, kind in found.items() if kind is None},
        launch.num_warps,
        launch.num_stages,
        tensor_cores,
        tuple(key for key, value in numbers.items() if value % 16 == 0),
        capabilities,
    )
