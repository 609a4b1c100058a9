"""What a kernel's benchmark is made of: shapes, the bytes and operations nobody can do without, and what is compared.

Each `benchmark_<op>.py` holds
- `BYTES` and `FLOPS`: the formulas as text, with a legend of their letters;
- `cases()`: a `Case` for each of DeepSeek-V3, Moonlight and the nano model of `make demo`, forward and backward;
- `PEERS`, where a library that may be missing is among what is compared: the module of each, by its label;
- `kept()`, where the bytes kept for backward have a target: a `Kept` for each model.

`python -m benchmarks.kernels.roofline` puts formulas and floors into modeling/kernels/ROOFLINE.md, on any machine;
`python -m benchmarks.kernels.run` measures, on a GPU only.
"""

import importlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
# Whose figures have targets.
PUBLISHED = ("V3", "Moonlight")


class Target(NamedTuple):
    """What is to be reached on one H200.

    Attributes:
        figure: "TFLOP/s", "TB/s", "of the copy" (its bandwidth), "times as fast" as a peer: at least; "µs", "times the
            time" of a peer: at most.
        value: in that unit.
        peer: label of the run that it is held against, where it is.
    """

    figure: Literal["TFLOP/s", "TB/s", "of the copy", "times as fast", "µs", "times the time"]
    value: float
    peer: str = ""

    def __str__(self) -> str:
        """Return it as in a table."""
        sign = "≤" if self.figure in ("µs", "times the time") else "≥"
        number = f"{self.value:.0%}" if self.figure == "of the copy" else f"{self.value:g}"
        return f"{sign} {number} {self.figure}{f' of {self.peer}' if self.peer else ''}"

    def reached(self, case: "Case", milliseconds: Mapping[str, float]) -> tuple[float, bool]:
        """Return what was measured, in the same unit, and whether that is enough, given the time of each run."""
        ours = milliseconds["ours"]
        measured = {
            "TFLOP/s": case.num_flops / ours / 1e9,
            "TB/s": case.num_bytes / ours / 1e9,
            "of the copy": case.num_bytes / ours * 1e3 / BYTES_PER_S,
            "µs": ours * 1e3,
            "times as fast": milliseconds.get(self.peer, float("nan")) / ours,
            "times the time": ours / milliseconds.get(self.peer, float("nan")),
        }[self.figure]
        is_enough = measured <= self.value if self.figure in ("µs", "times the time") else measured >= self.value
        return measured, is_enough


class Case(NamedTuple):
    """One shape of one operator.

    Attributes:
        name: such as "forward, V3".
        num_bytes: that any implementation reads and writes, each tensor once.
        num_flops: of matrix products.
        runs: given a device, the calls to compare: "ours" first. Inputs are drawn once and shared.
        target: of ours.
    """

    name: str
    num_bytes: int
    num_flops: int
    runs: Callable[[torch.device], Runs]
    target: Target | None = None

    @property
    def floor_s(self) -> float:
        """Return the seconds that an H200 needs at the least."""
        return max(self.num_bytes / BYTES_PER_S, self.num_flops / FLOPS_PER_S)


class Kept(NamedTuple):
    """What a call keeps for backward, weights not counted.

    Attributes:
        name: such as "kept, V3".
        minimal_bytes: that no implementation can do without.
        call: given a device, the call and the weights.
        at_most: times the minimum, as the target has it.
    """

    name: str
    minimal_bytes: int
    call: Callable[[torch.device], tuple[Callable[[], Any], list[torch.Tensor]]]
    at_most: float


def operators() -> list[str]:
    """Return the operators that have a benchmark."""
    return sorted(path.stem.removeprefix("benchmark_") for path in Path(__file__).parent.glob("benchmark_*.py"))


def benchmark(operator: str) -> Any:
    """Return the module of an operator's benchmark."""
    return importlib.import_module(f"benchmarks.kernels.benchmark_{operator}")


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    return find_spec(module.partition(".")[0]) is not None and find_spec(module) is not None


def not_installed(operator: str) -> list[str]:
    """Return the labels of an operator's peers that this machine lacks."""
    peers = getattr(benchmark(operator), "PEERS", {})
    return [label for label, module in peers.items() if not is_installed(module)]


def forward_and_backward(
    name: str,
    num_bytes: tuple[int, int],
    num_flops: tuple[int, int],
    draw: Callable[[torch.device], list[torch.Tensor]],
    functions: Mapping[str, Callable[..., Any]],
    targets: tuple[Target | None, Target | None] = (None, None),
) -> list[Case]:
    """Return two cases, the call itself and its gradients, of functions that take the same tensors."""

    def forward(device: torch.device) -> Runs:
        inputs = draw(device)
        return {label: _without_gradients(function, inputs) for label, function in functions.items()}

    def backward(device: torch.device) -> Runs:
        inputs = _leaves(draw(device))
        return {label: _gradients(function, inputs) for label, function in functions.items()}

    return [
        Case(f"{way}, {name}", num_bytes[which], num_flops[which], runs, targets[which])
        for which, (way, runs) in enumerate((("forward", forward), ("backward", backward)))
    ]


def whole_step(
    name: str,
    num_bytes: int,
    num_flops: int,
    draw: Callable[[torch.device], list[torch.Tensor]],
    functions: Mapping[str, Callable[..., torch.Tensor]],
    target: Target | None = None,
) -> Case:
    """Return the case of forward and backward in one call."""

    def runs(device: torch.device) -> Runs:
        inputs = _leaves(draw(device))

        def step(function: Callable[..., torch.Tensor]) -> Callable[[], Any]:
            return lambda: _gradients(function, inputs)()

        return {label: step(function) for label, function in functions.items()}

    return Case(f"step, {name}", num_bytes, num_flops, runs, target)


def _leaves(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs]


def _without_gradients(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return run


def _gradients(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Callable[[], Any]:
    """Return a call that takes gradients; the first one also runs the function, whose graph then stays."""
    graph: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def run() -> Any:
        if not graph:
            given = function(*inputs)
            outputs = [given] if isinstance(given, torch.Tensor) else list(given)
            generator = torch.Generator(device=outputs[0].device).manual_seed(1)
            graph.append((outputs, [_cotangent(each, generator) for each in outputs]))
        outputs, cotangents = graph[0]
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)

    return run


def _cotangent(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=generator)
