"""Peak memory of a training step, ours beside transformers' own, each in a fresh process.

    python -m benchmarks.memory

The C library is told to give freed memory back at once, so that the resident size is what is in use. Reported is the
peak above what the step starts with (weights and optimizer state, the same in both), and the whole process less the
interpreter and its libraries.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.bench_model import adamw, our_model, stock_model, train_step

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def resident_mib(field: str = "VmRSS") -> float:
    """Return the resident memory of this process, or its peak (`VmHWM`), in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def train_once(side: str, dtype: str) -> dict[str, float]:
    """Return the peaks (MiB) of a training step of `side` ("ours" or "peer"); to be called in a fresh process."""
    before = resident_mib()
    model = stock_model(getattr(torch, dtype))
    if side == "ours":
        weights, model = model.state_dict(), our_model(getattr(torch, dtype))
        model.load_state_dict(weights)
        del weights
    model.train()
    optimizer = adamw(model)
    for _ in range(3):
        train_step(model, optimizer)
    gc.collect()
    base = resident_mib()
    # Writing 5 sets the peak back to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    train_step(model, optimizer)
    peak = resident_mib("VmHWM")
    return {"step_mib": peak - base, "process_mib": peak - before}


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Return the median peaks by dtype and side, and under "ratio" ours over the peer's."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in ("float32", "bfloat16"):
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(REPEATS):
            for side in runs:
                command = [sys.executable, "-m", "benchmarks.memory", side, dtype]
                environment = {**os.environ, **GIVE_BACK}
                run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
                runs[side].append(json.loads(run.stdout.splitlines()[-1]))
        sides = {
            side: {figure: statistics.median(run[figure] for run in found) for figure in found[0]}
            for side, found in runs.items()
        }
        ratio = {figure: sides["ours"][figure] / sides["peer"][figure] for figure in sides["ours"]}
        result[dtype] = {**sides, "ratio": ratio}
    return result


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(train_once(*sys.argv[1:])))
    else:
        print(json.dumps(measure(), indent=1))
