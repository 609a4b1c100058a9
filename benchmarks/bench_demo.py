"""`make demo` with several seeds: the figures that it is to reach, and accuracy by stage.

    python -m benchmarks.bench_demo [--seeds 0 1 2] [--threads 1] [--quick] [--out benchmarks/results]

The demos run one after the other, each in a process of its own and in `--runs`/seed_N. With --quick they teach nothing,
and only show that this script works.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import keep, machine, make_folder

# Failed checks end the demo with 1 as well, and are figures too.
ENDED = (0, 1)


def run_seed(seed: int, runs: Path, threads: int, quick: bool) -> dict[str, Any]:
    """Return what the demo found with a seed.

    Raises:
        RuntimeError: it did not come to its end.
    """
    folder = runs / f"seed_{seed}"
    arguments = ["--out", str(folder), "--seed", str(seed), "--threads", str(threads), *(["--quick"] if quick else [])]
    code = subprocess.run([sys.executable, "-m", "seeklet.finetune.demo", *arguments]).returncode
    state = json.loads((folder / "demo.json").read_text(encoding="utf-8")) if code in ENDED else {}
    if not state.get("finished") or state["settings"] != {"seed": seed, "threads": threads, "quick": quick}:
        raise RuntimeError(f"the demo with seed {seed} ended with exit code {code} before it had found anything")
    return state["findings"]


def target_lines(found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the table of figures to reach, with a column for each seed."""
    lines = [
        f"| what | asked | {' | '.join(f'seed {seed}' for seed in found)} | met in every seed |",
        "|---|---|" + "---|" * len(found) + "---|",
    ]
    for targets in zip(*(each["targets"] for each in found.values()), strict=True):
        got = " | ".join(target["got"] for target in targets)
        met = "yes" if all(target["reached"] for target in targets) else "no"
        lines.append(f"| {targets[0]['what']} | {targets[0]['asked']} | {got} | {met} |")
    return lines


def stage_lines(found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the table of accuracies by stage and seed, with 95 % intervals, and of how a model thinks."""
    figures = (
        ("greedy", "pass@1", "pass@1 greedy, %"),
        ("sampled", "pass@1", "pass@1 sampled, %"),
        ("greedy", "reasoned", "thinks, %"),
        ("greedy", "tokens", "tokens"),
    )
    lines = [
        f"| stage | seed | {' | '.join(label for *_, label in figures)} | seconds |",
        "|---|---|" + "---|" * len(figures) + "---|",
    ]
    for stages in zip(*(each["stages"] for each in found.values()), strict=True):
        for seed, stage in zip(found, stages, strict=True):
            cells = [_show(stage[kind][name]) if stage[kind] else "" for kind, name, _ in figures]
            lines.append(f"| {stage['name']} | {seed} | {' | '.join(cells)} | {stage['seconds']:.0f} |")
    return lines


def _show(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.1f} ({estimate['low']:.1f}-{estimate['high']:.1f})"


def values(found: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Return each figure to reach, by what it is and seed."""
    return {
        f"{target['what']}, seed {seed}": target["value"] for seed, each in found.items() for target in each["targets"]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demos, print the tables, and keep them under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="as the demo takes them")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--quick", action="store_true", help="a few steps a stage; kept apart from real results")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_seeds"), help="folder for the demos")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    given = parser.parse_args(arguments)
    make_folder(parser, given.out)
    torch.set_num_threads(given.threads)
    found = {seed: run_seed(seed, given.runs, given.threads, given.quick) for seed in given.seeds}
    lines = [*target_lines(found), "", *stage_lines(found)]
    print("\n".join(["", *lines]))
    keep(given.out, "demo_quick" if given.quick else "demo", machine(), lines, values(found))


if __name__ == "__main__":
    main()
