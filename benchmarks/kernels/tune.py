"""The fastest tiling of each kernel that has several, measured on this machine's GPU at DeepSeek-V3's shapes.

    python -m benchmarks.kernels.tune [KERNEL or OPERATOR ...]

Prints the time of each tiling that compiles and gives the same numbers, and writes the fastest to
modeling/kernels/tuned.py, from where launches of this and later processes take it. Afterwards renew the tables of what
is compiled: python -m tests.kernels.ahead_of_time.
"""

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.kernels.case import benchmark
from benchmarks.kernels.run import NOT_RUN, milliseconds, take_kernels
from seeklet.modeling.kernels import launch, tuned

FILE = Path(tuned.__file__)
REPEATS = 10
# A tiling has to be this much faster than the one it replaces, so that noise changes nothing.
GAIN = 0.98


class Tunable(NamedTuple):
    """A kernel with several tilings: the benchmark case that launches it, and the values to try of each size."""

    operator: str
    case: str
    sizes: dict[str, tuple[int, ...]]

    def tilings(self) -> list[dict[str, int]]:
        """Return every combination."""
        return [dict(zip(self.sizes, each, strict=True)) for each in itertools.product(*self.sizes.values())]


ATTENTION = {"BLOCK_S": (32, 64, 128), "BLOCK_T": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3)}
HEAD = {"BLOCK_T": (64, 128), "BLOCK_V": (128, 256), "BLOCK_H": (64,), "num_warps": (4, 8), "num_stages": (3, 4)}
TUNABLE = {
    "mla_attention.forward": Tunable("mla_attention", "forward", ATTENTION),
    "mla_attention.query": Tunable("mla_attention", "backward", ATTENTION),
    "mla_attention.key": Tunable("mla_attention", "backward", ATTENTION),
    "linear_log_probs.forward": Tunable("linear_log_probs", "forward", HEAD),
    "linear_log_probs.backward": Tunable("linear_log_probs", "backward", HEAD),
}


def chosen_kernels(names: Iterable[str]) -> list[str]:
    """Return the kernels of these names or operators; all where there is none.

    Raises:
        ValueError: a name is neither.
    """
    given = list(names)
    known = {*TUNABLE, *(each.operator for each in TUNABLE.values())}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"no kernel {', '.join(unknown)} with several tilings; there are {', '.join(sorted(known))}")
    return [name for name, each in TUNABLE.items() if not given or name in given or each.operator in given]


def call_of(kernel: str, model: str, device: torch.device) -> Callable[[], Any]:
    """Return the call of ours that launches a kernel at the shape of a model."""
    tunable = TUNABLE[kernel]
    cases = {case.name: case for case in benchmark(tunable.operator).cases()}
    return cases[f"{tunable.case}, {model}"].runs(device)["ours"]


def fastest(
    call: Callable[[], Any],
    key: str,
    tilings: Iterable[dict[str, int]],
    measure: Callable[[Callable[[], Any]], float],
) -> dict[str, int] | None:
    """Return the tiling with which `call` takes the least time; None where that is the one it has.

    Tilings that do not compile, or give other numbers, are told and left out.
    """
    expected, best, least = call(), None, GAIN * measure(call)
    print(f"{key}: {least / GAIN:.3f} ms as it is", flush=True)
    for tiling in tilings:
        with mock.patch.dict(tuned.TUNED, {key: tiling}):
            try:
                torch.testing.assert_close(call(), expected, rtol=0.02, atol=0.02)
                time = measure(call)
            # A compiler's errors are of many kinds, too much shared memory the most frequent.
            except Exception as error:
                print(f"  {tiling}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", flush=True)
                continue
        print(f"  {tiling}: {time:.3f} ms", flush=True)
        if time < least:
            best, least = tiling, time
    return best


def text_of(found: dict[str, dict[str, int]], where: str) -> str:
    """Return the whole of tuned.py with these tilings."""
    head, _, rest = FILE.read_text(encoding="utf-8").partition("\n\n")
    _, _, function = rest.partition("\n\n\n")
    lines = "".join(f'    "{key}": {str(tiling).replace(chr(39), chr(34))},\n' for key, tiling in sorted(found.items()))
    title = head.partition("\n")[0]
    note = (
        f"{title}\n\nMeasured on: {where}. Where there is none, a kernel takes what its `kernel.py` has for the chip.\n"
    )
    return f'{note}"""\n\nTUNED: dict[str, dict[str, int]] = {{\n{lines}}}\n\n\n{function}'


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the tilings of what is asked for; each kernel's is written when it is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(TUNABLE)}, or an operator")
    given = parser.parse_args(arguments)
    try:
        chosen = chosen_kernels(given.kernels)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    device = torch.device("cuda")
    take_kernels(device)
    chip = launch.capability(torch.empty(0, device=device))
    for kernel in chosen:
        key = f"{kernel}/sm_{chip}"
        call = call_of(kernel, "V3", device)
        found = fastest(
            call, key, TUNABLE[kernel].tilings(), lambda run: statistics.median(milliseconds(run, REPEATS, device))
        )
        if found is not None:
            tuned.TUNED[key] = found
            write(FILE, text_of(tuned.TUNED, torch.cuda.get_device_name()))
        print(f"{key}: {found or 'stays as it is'}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
