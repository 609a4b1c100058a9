"""`make bench`: ours beside stock transformers on the same weights in one process; one table, and its ratios kept.

python -m benchmarks.run [--threads 2] [--repeats 9] [--skip-loading] [--out benchmarks/results]
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import bench_model, loading, memory
from benchmarks.timing import Comparison

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


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, versions, date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": "not yet run on a GPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def speed_line(row: Comparison) -> str:
    """Return one line of the table, milliseconds as median (smallest-largest)."""
    cells = [
        f"{median * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f})"
        for median, (low, high) in ((row.ours_s, row.ours_range), (row.peer_s, row.peer_range))
    ]
    met = "yes" if row.ratio >= row.target else "no"
    return f"| {row.name} | {cells[0]} | {cells[1]} | {row.ratio:.2f}x | {row.target:g}x | {met} |"


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
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
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
    stem = arguments.out / f"{about['date']}_cpu_{about['threads']}threads"
    stem.with_suffix(".json").write_text(json.dumps({**about, "ratios": ratios}, indent=1) + "\n")
    note = ", ".join(f"{key} {value}" for key, value in about.items())
    stem.with_suffix(".md").write_text("\n".join([*lines, "", note]) + "\n")
    print(f"\n{note}\nkept in {stem}.json and .md")


if __name__ == "__main__":
    main()
