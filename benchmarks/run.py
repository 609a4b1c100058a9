"""`make bench`: ours beside stock transformers on the same weights in one process; one table, and its ratios kept.

python -m benchmarks.run [--threads 2] [--repeats 9] [--skip-loading] [--out benchmarks/results]
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import bench_model, loading, memory
from benchmarks.report import keep, machine, make_folder
from benchmarks.timing import speed_line

# (what, dtype, at least so many times faster)
SPEED = (
    (bench_model.compare_mla_layer, torch.bfloat16, 18.0),
    (bench_model.compare_mla_layer, torch.float32, 45.0),
    (bench_model.compare_decode, torch.float32, 2.0),
    (bench_model.compare_decode, torch.bfloat16, 2.0),
    (bench_model.compare_prefill, torch.float32, 1.0),
    (bench_model.compare_prefill, torch.bfloat16, 1.0),
    (bench_model.compare_training, torch.float32, 1.3),
    (bench_model.compare_training, torch.bfloat16, 1.5),
)
MEMORY_TARGET, LOADING_TARGET = 0.8, 1.0


def memory_lines(result: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return the memory lines: the step's own peak, which has a target, and the whole process, which has none."""
    lines = []
    for dtype, sides in result.items():
        for figure, title in (("step_mib", "above weights and optimizer"), ("process_mib", "whole process")):
            ours, peer, ratio = (sides[side][figure] for side in ("ours", "peer", "ratio"))
            has_target = figure == "step_mib"
            target = f"{MEMORY_TARGET:g}x" if has_target else ""
            met = ("yes" if ratio <= MEMORY_TARGET else "no") if has_target else ""
            name = f"training step, peak memory {title}, {dtype}"
            lines.append(f"| {name} | {ours:.0f} MiB | {peer:.0f} MiB | {ratio:.2f}x | {target} | {met} |")
    return lines


def loading_lines(result: dict[str, Any]) -> list[str]:
    """Return the loading lines: time and peak memory of the load, and until every weight has been used once."""
    lines = []
    for figure, title, unit in (
        ("load_s", "time", "s"),
        ("load_mib", "peak memory", "MiB"),
        ("first_use_s", "time with a first use of all weights", "s"),
        ("first_use_mib", "peak memory with a first use", "MiB"),
    ):
        digits = 2 if unit == "s" else 0
        ours, peer = (f"{result[side][figure]:.{digits}f} {unit}" for side in ("ours", "peer"))
        ratio = result["ratios"][figure]
        met = "yes" if ratio <= LOADING_TARGET else "no"
        lines.append(
            f"| loading 2 GB of bf16, {title} | {ours} | {peer} | {ratio:.2f}x | {LOADING_TARGET:g}x | {met} |"
        )
    return lines


def main() -> None:
    """Measure, print the table, and keep it as JSON and Markdown under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats of every comparison")
    parser.add_argument("--skip-loading", action="store_true", help="leave out loading, which writes 2 GB to /tmp")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats take a number from 1")
    make_folder(parser, arguments.out)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    about = machine()
    header = "| what | seeklet, ms | transformers, ms | ratio | target | met |"
    lines = [header, "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    ratios: dict[str, float] = {}

    def add(new: list[str]) -> None:
        lines.extend(new)
        print("\n".join(new), flush=True)

    for measure, dtype, target in SPEED:
        row = measure(dtype, target, arguments.repeats)
        ratios[row.name] = round(row.ratio, 2)
        add([speed_line(row)])
    if Path("/proc/self/clear_refs").exists():
        peaks = memory.measure()
        ratios.update({f"training step memory, {d}": round(v["ratio"]["step_mib"], 2) for d, v in peaks.items()})
        add(memory_lines(peaks))
    else:
        print("peak memory is left out: it is read from /proc, which this system has not")
    if not arguments.skip_loading:
        loaded = loading.measure()
        ratios.update({f"loading, {f}": round(v, 2) for f, v in loaded["ratios"].items()})
        add(loading_lines(loaded))
    keep(arguments.out, "", about, lines, ratios)


if __name__ == "__main__":
    main()
