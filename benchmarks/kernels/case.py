"""What a kernel's benchmark is made of: shapes, the bytes and operations nobody can do without, and what is compared.

Each `benchmark_<op>.py` holds
- `BYTES` and `FLOPS`: the formulas as text, with a legend of their letters;
- `cases()`: a `Case` for each of DeepSeek-V3, Moonlight and the nano model of `make demo`, forward and backward.

`python -m benchmarks.kernels.roofline` puts formulas and floors into modeling/kernels/ROOFLINE.md, on any machine;
`python -m benchmarks.kernels.run` measures, on a GPU only.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Ceilings measured on one H200: a copy in device memory, and a bf16 product of large matrices.
BYTES_PER_S = 4.3e12
FLOPS_PER_S = 788e12
Runs = Mapping[str, Callable[[], Any]]


class Model(NamedTuple):
    """A published shape: what its layers are as wide as; `tokens` a pass, in one row."""

    tokens: int
    hidden: int
    dense: int
    expert: int
    heads: int
    nope: int
    rope: int


MODELS = {
    "V3": Model(tokens=8192, hidden=7168, dense=18432, expert=2048, heads=128, nope=128, rope=64),
    "Moonlight": Model(tokens=8192, hidden=2048, dense=11264, expert=1408, heads=16, nope=128, rope=64),
    "nano": Model(tokens=512, hidden=96, dense=384, expert=32, heads=4, nope=24, rope=8),
}


class Case(NamedTuple):
    """One shape of one operator.

    Attributes:
        name: such as "forward, V3".
        num_bytes: that any implementation reads and writes, each tensor once.
        num_flops: of matrix products.
        runs: given a device, the calls to compare: "ours" first. Inputs are drawn once and shared.
    """

    name: str
    num_bytes: int
    num_flops: int
    runs: Callable[[torch.device], Runs]

    @property
    def floor_s(self) -> float:
        """Return the seconds that an H200 needs at the least."""
        return max(self.num_bytes / BYTES_PER_S, self.num_flops / FLOPS_PER_S)


def operators() -> list[str]:
    """Return the operators that have a benchmark."""
    return sorted(path.stem.removeprefix("benchmark_") for path in Path(__file__).parent.glob("benchmark_*.py"))


def benchmark(operator: str) -> Any:
    """Return the module of an operator's benchmark."""
    return importlib.import_module(f"benchmarks.kernels.benchmark_{operator}")


def forward_and_backward(
    name: str,
    num_bytes: tuple[int, int],
    num_flops: tuple[int, int],
    draw: Callable[[torch.device], list[torch.Tensor]],
    functions: Mapping[str, Callable[..., Any]],
) -> list[Case]:
    """Return two cases, the call itself and its gradients, of functions that take the same tensors."""

    def forward(device: torch.device) -> Runs:
        inputs = draw(device)
        return {label: _without_gradients(function, inputs) for label, function in functions.items()}

    def backward(device: torch.device) -> Runs:
        inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in draw(device)]
        return {label: _gradients(function, inputs) for label, function in functions.items()}

    return [
        Case(f"{way}, {name}", num_bytes[which], num_flops[which], runs)
        for which, (way, runs) in enumerate((("forward", forward), ("backward", backward)))
    ]


def _without_gradients(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return run


def _gradients(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    given = function(*inputs)
    outputs = [given] if isinstance(given, torch.Tensor) else list(given)
    generator = torch.Generator(device=outputs[0].device).manual_seed(1)
    cotangents = [
        torch.randn(each.shape, dtype=each.dtype, device=each.device, generator=generator) for each in outputs
    ]
    return lambda: torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)
