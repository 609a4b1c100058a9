"""What the pre-flight of publishing finds and costs: python -m benchmarks.bench_publish.

Leaks planted one at a time, clean repositories, checkpoints broken one at a time, and a pass over three shards. What a
killed upload sends again is in bench_upload.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import keep, machine, make_folder
from seeklet.finetune.publish.preflight import Checks, inspect
from tests.finetune.publish import test_broken_checkpoints as broken
from tests.finetune.publish import test_leaks as leaks
from tests.finetune.publish.model_folders import build_model, copy

CHECKS = Checks(licence="mit", answer=False)
SHARD_BYTES = 256_000_000


@contextmanager
def damaged(folder: Path, damage: Callable[[Path], object]) -> Iterator[Path]:
    """Give a copy of the folder after `damage`."""
    with tempfile.TemporaryDirectory() as place:
        there = copy(folder, Path(place) / "model")
        damage(there)
        yield there


def count_leaks(models: dict[str, Path]) -> int:
    """Return how many of the planted leaks are found, in the file where they are, and keep all from being sent."""
    found = 0
    for file, plant in leaks.LEAKS.values():
        with damaged(models["Qwen3"], plant) as folder:
            report = inspect(folder, CHECKS)
            found += bool(leaks.find_leak(report, file)) and not report.is_fit
    return found


def count_alarms(models: dict[str, Path]) -> int:
    """Return for how many of the clean repositories something is said to be wrong."""
    alarms = 0
    for i in range(len(leaks.CARDS)):
        with tempfile.TemporaryDirectory() as place:
            alarms += not inspect(leaks.write_clean(models, i, Path(place) / "model"), CHECKS).is_fit
    return alarms


def count_broken(models: dict[str, Path]) -> int:
    """Return how many of the broken checkpoints are refused with the tensor or key named."""
    found = 0
    for model, damage, file, where in broken.BROKEN.values():
        with damaged(models[model], damage) as folder:
            found += broken.is_named(inspect(folder, CHECKS), file, where)
    return found


def main() -> None:
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    arguments = parser.parse_args()
    make_folder(parser, arguments.out)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        models = {kind: build_model(kind, root / kind) for kind in leaks.KINDS}
        found, alarms = count_leaks(models), count_alarms(models)
        refused = count_broken(broken.build_models(root / "broken"))
        (root / "pass").mkdir()
        took = broken.measure_pass(root / "pass", SHARD_BYTES)
    read, memory = took.num_read_by_process / took.num_bytes, took.peak / SHARD_BYTES
    size = f"{took.num_bytes / 1e6:,.0f} MB in 3 shards"
    rows = [
        ("planted leaks found and kept here", f"{found} of {len(leaks.LEAKS)}", "all", found == len(leaks.LEAKS)),
        ("false alarms over clean repositories", f"{alarms} of {len(leaks.CARDS)}", "at most 1", alarms <= 1),
        (
            "broken checkpoints refused, the tensor or key named",
            f"{refused} of {len(broken.BROKEN)}",
            "all",
            refused == len(broken.BROKEN),
        ),
        (f"bytes read per byte, {size}", f"{read:.3f}", "at most 1.1", read <= 1.1),
        (f"peak memory in shards, {size}", f"{memory:.2f}", "at most 1", memory <= 1),
    ]
    lines = ["| what | measured | asked | met |", "|---|---|---|---|"]
    lines += [f"| {what} | {value} | {asked} | {'yes' if met else 'no'} |" for what, value, asked, met in rows]
    print("\n".join(lines))
    ratios = {"bytes read per byte": round(read, 3), "peak memory in shards": round(memory, 3)}
    ratios |= {"leaks found": found / len(leaks.LEAKS), "broken refused": refused / len(broken.BROKEN)}
    keep(arguments.out, "publish", machine(), lines, ratios)


if __name__ == "__main__":
    main()
