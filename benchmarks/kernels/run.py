"""Every kernel beside its peers on the GPU of this machine; without one it says so and measures nothing.

    python -m benchmarks.kernels.run [OPERATOR ...] [--repeats 50] [--out benchmarks/results]
    python -m benchmarks.kernels.run --once [OPERATOR ...]      # ours at nano size, once: for compute-sanitizer
    python -m benchmarks.kernels.run --smoke [OPERATOR ...]     # on CPU at nano size: that everything here runs

A table an operator: median and spread, the rate, the share of the H200's floor, how many times a peer's time, and what
is to be reached. It is written when the operator is done. Peers that are not installed are named; one that fails is
named with its error, and does not end the run.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kernels.case import PUBLISHED, Case, Kept, benchmark, not_installed, operators
from benchmarks.kernels.results import record
from benchmarks.report import make_folder
from seeklet.modeling.kernels import launch

NOT_RUN = "not yet run on a GPU: torch sees no CUDA device here, and nothing is measured without one"
# More than the 50 MB of an H200's second-level cache, so that a call finds nothing of the last one there; and written
# long enough, 0.25 ms, for Python to have launched the call by then.
FLUSH_BYTES = 2**30
WARM_UP = 3
# A call is repeated no longer than this: `make gpu` has ten minutes for all.
MAX_S = 0.5
MIN_REPEATS = 3

HEADER = ["| case | what | µs | rate | of the floor | ours is faster | target | met |", "|---" * 8 + "|"]


class Measured(NamedTuple):
    """Lines of the table, how many times ours each peer takes, and what of ours failed."""

    lines: list[str]
    ratios: dict[str, float]
    failed: list[str]


def milliseconds(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Return the time of each repeat on the device, on a GPU each with a cold cache, after some that do not count."""
    if device.type == "cpu":
        return [1e3 * _seconds(call) for _ in range(repeats)]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    # The first one compiles, and says nothing of how long a call takes.
    once = MAX_S
    for warm_up in range(WARM_UP):
        once = _seconds(lambda: (call(), torch.cuda.synchronize()))
        if warm_up and once > MAX_S:
            break
    fit = int(MAX_S / max(once, 1e-6))
    times = []
    for _ in range(min(repeats, max(MIN_REPEATS, fit))):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(case: Case, repeats: int, device: torch.device) -> Measured:
    """Measure ours and then its peers, each given back its memory before the next."""
    try:
        runs = dict(case.runs(device))
    # Out of memory at the inputs, say: what was measured before it is to be kept.
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Measured([f"| {case.name} | inputs | FAILED: {text} | | | | | |"], {}, [f"{case.name}: {text}"])
    # Which needs a C++ compiler and half a minute on CPU, where nothing is learnt from it.
    labels = [label for label in runs if device.type != "cpu" or "torch.compile" not in label]
    medians: dict[str, float] = {}
    lines, failed = [], []
    for label in labels:
        try:
            times = milliseconds(runs.pop(label), repeats, device)
        # Whatever a peer fails of is its result, out of memory among it; ours makes the whole run fail at the end.
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            lines.append(f"| {case.name} | {label} | FAILED: {type(error).__name__}: {text} | | | | | |")
            failed += [f"{case.name}: {type(error).__name__}: {text}"] if label == "ours" else []
        else:
            medians[label] = statistics.median(times)
            lines.append(_line(case, label, times, medians))
        if device.type != "cpu":
            gc.collect()
            torch.cuda.empty_cache()
    if case.target is not None and "ours" in medians:
        measured, is_enough = case.target.reached(case, medians)
        lines.append(
            f"| {case.name} | | | {measured:.3g} {case.target.figure} | | | {case.target} | {_met(is_enough)} |"
        )
    ratios = {f"{case.name}, {label}": each / medians["ours"] for label, each in medians.items() if "ours" in medians}
    return Measured(lines, {name: ratio for name, ratio in ratios.items() if not name.endswith(", ours")}, failed)


def _met(yes: bool) -> str:
    return "yes" if yes else "no"


def _line(case: Case, label: str, times: list[float], medians: dict[str, float]) -> str:
    median = medians[label]
    rate = f"{case.num_bytes / median / 1e9:.2f} TB/s, {case.num_flops / median / 1e9:.0f} TFLOP/s"
    spread = f"{median * 1e3:.1f} ({min(times) * 1e3:.1f}-{max(times) * 1e3:.1f})"
    ratio = f"{median / medians['ours']:.2f}x" if "ours" in medians else ""
    return f"| {case.name} | {label} | {spread} | {rate} | {case.floor_s * 1e3 / median:.0%} | {ratio} | | |"


def bytes_kept(call: Callable[[], Any], weights: list[torch.Tensor]) -> int:
    """Return the bytes that autograd saves for backward while `call` runs, each memory once, without the weights'."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Until all is counted, what is kept stays alive, and no address comes twice.
        output = call()
    del output
    return sum(found.values())


def compare_kept(kept: Kept, device: torch.device) -> tuple[str, float]:
    """Return the line of the table, and the bytes kept over the minimum."""
    call, weights = kept.call(device)
    size = bytes_kept(call, weights)
    ratio = size / kept.minimal_bytes
    figures = f"{size / 1e6:.1f} MB, {ratio:.2f}x the minimum"
    met = _met(ratio <= kept.at_most)
    return f"| {kept.name} | ours | | {figures} | | | ≤ {kept.at_most:g}x the minimum | {met} |", ratio


def measure(
    operator: str,
    models: Sequence[str],
    repeats: int,
    device: torch.device,
    keep: Callable[[Measured], object] = lambda found: None,
) -> Measured:
    """Measure an operator at the shapes of these models, printing each line when it is there; `keep` all that far."""
    take_kernels(device)
    module = benchmark(operator)
    missing = [f"| | {label} | not installed | | | | | |" for label in not_installed(operator)]
    found = Measured([*HEADER, *missing], {}, [])
    print(f"\n## {operator}\n", *found.lines, sep="\n", flush=True)
    for case in module.cases():
        if not any(name in case.name for name in models):
            continue
        each = compare(case, repeats, device)
        print(*each.lines, sep="\n", flush=True)
        found.lines.extend(each.lines)
        found.ratios.update({f"{operator}: {name}": ratio for name, ratio in each.ratios.items()})
        found.failed.extend(f"{operator}, {line}" for line in each.failed)
        keep(found)
    for kept in getattr(module, "kept", list)():
        if any(name in kept.name for name in models):
            try:
                line, ratio = compare_kept(kept, device)
            except Exception as error:
                found.failed.append(f"{operator}, {kept.name}: {type(error).__name__}: {error}")
                continue
            print(line, flush=True)
            found.lines.append(line)
            found.ratios[f"{operator}: {kept.name}, of the minimum"] = ratio
    return found


def take_kernels(device: torch.device) -> None:
    """Let operators take their kernels on a GPU, which otherwise they do from `kernelize` on."""
    if device.type == "cuda":
        launch.take_triton(True)


def run_once(chosen: Sequence[str], device: torch.device) -> None:
    """Call ours of every nano case once."""
    take_kernels(device)
    for operator in chosen:
        for case in benchmark(operator).cases():
            if "nano" in case.name:
                case.runs(device)["ours"]()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                print(f"{operator}, {case.name}: ran", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print it and keep it; 0 also where there is no GPU, 1 where one of ours failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(operators())}; all by default")
    parser.add_argument("--repeats", type=int, default=50, help="at most so many calls of each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--once", action="store_true", help="call ours at nano size once, and measure nothing")
    parser.add_argument("--smoke", action="store_true", help="on CPU at nano size, once; nothing is kept")
    given = parser.parse_args(arguments)
    unknown = set(given.operators) - set(operators())
    if unknown:
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}; there are {', '.join(operators())}")
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}; allowed: 1 or more")
    chosen = given.operators or operators()
    if given.smoke:
        failed = [line for operator in chosen for line in measure(operator, ["nano"], 1, torch.device("cpu")).failed]
        return 1 if failed else 0
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    if given.once:
        run_once(chosen, torch.device("cuda"))
        return 0
    make_folder(parser, given.out)
    failed = []
    for operator in chosen:

        def keep(found: Measured, section: str = f"benchmark {operator}") -> Path:
            return record(given.out, section, found.lines, found.ratios)

        found = measure(operator, PUBLISHED, given.repeats, torch.device("cuda"), keep)
        failed += found.failed
        print(f"kept in {keep(found)}", flush=True)
    print(*(f"FAILED: {line}" for line in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
