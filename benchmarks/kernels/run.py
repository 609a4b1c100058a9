"""Every kernel beside its peers on the GPU of this machine; without one it says so and measures nothing.

    python -m benchmarks.kernels.run [OPERATOR ...] [--repeats 50] [--out benchmarks/results]

A table an operator: median and spread, the rate, the share of the H200's floor, and how many times a peer's time.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.case import Case, benchmark, operators
from benchmarks.report import keep, machine, make_folder

NOT_RUN = "not yet run on a GPU: torch sees no CUDA device here, and nothing is measured without one"
# More than the 50 MB of an H200's second-level cache, so that a call finds nothing of the last one there.
FLUSH_BYTES = 256 * 2**20

HEADER = ("| case | what | µs | rate | of the floor | ours is faster |", "|---" * 6 + "|")


def milliseconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Return the time of each of `repeats` calls on the GPU, each with a cold cache, after three that do not count."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for repeat in range(repeats + 3):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    return times


def compare(case: Case, repeats: int) -> tuple[list[str], dict[str, float]]:
    """Return lines of the table, ours first, and how many times ours each peer takes."""
    times = {label: milliseconds(call, repeats) for label, call in case.runs(torch.device("cuda")).items()}
    ours = statistics.median(times["ours"])
    lines, ratios = [], {}
    for label, each in times.items():
        median = statistics.median(each)
        rate = f"{case.num_bytes / median / 1e9:.2f} TB/s, {case.num_flops / median / 1e9:.0f} TFLOP/s"
        spread = f"{median * 1e3:.1f} ({min(each) * 1e3:.1f}-{max(each) * 1e3:.1f})"
        share = f"{case.floor_s * 1e3 / median:.0%}"
        lines.append(f"| {case.name} | {label} | {spread} | {rate} | {share} | {median / ours:.2f}x |")
        if label != "ours":
            ratios[f"{case.name}, {label}"] = median / ours
    return lines, ratios


def main() -> int:
    """Measure what is asked for, print it and keep it; 0 also where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(operators())}; all by default")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args()
    unknown = set(given.operators) - set(operators())
    if unknown:
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}; there are {', '.join(operators())}")
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    make_folder(parser, given.out)
    lines, ratios = [], {}
    for operator in given.operators or operators():
        lines += [
            "",
            f"## {operator}",
            "",
            "| case | what | µs | rate | of the floor | ours is faster |",
            "|---" * 6 + "|",
        ]
        for case in benchmark(operator).cases():
            more, found = compare(case, given.repeats)
            lines += more
            ratios.update({f"{operator}: {name}": ratio for name, ratio in found.items()})
            print("\n".join(more), flush=True)
            torch.cuda.empty_cache()
    about = {**machine(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    keep(given.out, "kernels", about, lines, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
