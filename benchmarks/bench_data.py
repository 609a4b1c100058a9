"""How many rows a second `seeklet data check` goes through on one core, and in how much memory.

python -m benchmarks.bench_data [--rows 200000] [--gigabytes 0.5 1.5] [--folder /tmp] [--out benchmarks/results]

Support chats of four turns and about 600 bytes, all different, as JSON lines. Each line of the table is a process of
its own; memory is its peak beyond that of the same process on a thousand rows. Rows per second of processor time are
what counts, for they depend little on what else the machine does. Beside it what only reads the rows and checks
nothing: the standard library, and `datasets`, which also writes them to its cache.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import keep, machine, make_folder

ROWS_TARGET = 50_000
SENTENCES = (
    "The router drops the connection every few minutes.",
    "I have restarted it twice already and the light is still red.",
    "Could you tell me whether my order has left your warehouse?",
    "Please send me the invoice for last month again.",
    "I am sorry to hear that, and I will look into it right away.",
    "Your parcel was handed to the carrier this morning.",
    "Open the settings, choose Network, and press Reset.",
    "A technician can come on Thursday between nine and twelve.",
    "Is there anything else that I can do for you?",
    "Thank you, that was quick!",
)


def check(near_duplicates: bool | None = None, scan: bool = True) -> Callable[[str], int]:
    """Return what checks a file and returns how many rows it has."""

    def run(path: str) -> int:
        from seeklet.finetune.data.check import check_data
        from seeklet.finetune.data.settings import DataSettings

        report = check_data(DataSettings(train=(path,), scan=scan), near_duplicates=near_duplicates)
        assert report.num_errors == 0
        return report.counts.rows

    return run


def read_by_json(path: str) -> int:
    """Read every line by the standard library; return their number."""
    with open(path, encoding="utf-8") as file:
        return sum(len(json.loads(line)["messages"]) > 0 for line in file)


def read_by_datasets(path: str) -> int:
    """Load the file by `datasets` into a new cache; return its number of rows."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as cache:
        return len(datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache))


RUNS: dict[str, Callable[[str], int]] = {
    "seeklet data check, all its defaults": check(),
    "… without near-duplicates": check(near_duplicates=False),
    "… without secrets and personal data": check(scan=False),
    "… without both: every row valid, exact duplicates": check(near_duplicates=False, scan=False),
    "json.loads only": read_by_json,
    "datasets.load_dataset only": read_by_datasets,
}


def write_rows(path: Path, enough: Callable[[int, int], bool]) -> int:
    """Write different rows until `enough` says so of their number and bytes; return the number."""
    rng = random.Random(0)
    written = num_rows = 0
    with path.open("wb") as file:
        while not enough(num_rows, written):
            lines = []
            for row in range(num_rows, num_rows + 1000):
                texts = [" ".join(rng.sample(SENTENCES, 2)) for _ in range(4)]
                texts[0] += f" My number is C-{row}."
                roles = ("user", "assistant") * 2
                turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
                lines.append(json.dumps({"messages": turns}))
            written += file.write("\n".join([*lines, ""]).encode())
            num_rows += 1000
    return num_rows


def measure(name: str, path: Path) -> dict[str, float]:
    """Return rows, seconds of wall and processor time, and peak memory of one run in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.bench_data", "--run", name, "--file", str(path)]
    return json.loads(subprocess.run(words, check=True, capture_output=True).stdout.splitlines()[-1])


def run_here(name: str, path: str) -> None:
    """Do one run in this process and print what it took."""
    # Imports, and all that a first call sets up, are not what is measured.
    import seeklet.finetune.data.check  # noqa: F401

    wall, cpu = time.perf_counter(), time.process_time()
    rows = RUNS[name](path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak_mib}))


def main() -> None:
    """Print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # As many as near-duplicates are looked for among by default.
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[], help="also runs on files of these sizes")
    parser.add_argument("--folder", default=None, help="where the files go; by default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_here(options.run, options.file)
        return
    make_folder(parser, options.out)
    lines = [
        "| what | file, MB | rows/s | rows per CPU second | memory beyond the start, MiB | at least | met |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    rates: dict[str, float] = {}

    def add(name: str) -> None:
        said, rates[f"{name}, {large.stat().st_size / 1e6:,.0f} MB"] = line(name, small, large)
        lines.append(said)
        print(said, flush=True)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small, large = Path(folder) / "small.jsonl", Path(folder) / "large.jsonl"
        write_rows(small, lambda rows, _: rows >= 1000)
        write_rows(large, lambda rows, _: rows >= options.rows)
        for name in RUNS:
            add(name)
        peer = next(rate for name, rate in rates.items() if name.startswith("json.loads"))
        for gigabytes in options.gigabytes:
            write_rows(large, lambda _, written, least=gigabytes * 1e9: written >= least)
            add(next(iter(RUNS)))
    ratios = {f"{name}, over json.loads": rate / peer for name, rate in rates.items()}
    keep(options.out, "data", machine(), lines, ratios)


def line(name: str, small: Path, large: Path) -> tuple[str, float]:
    """Return one line of the table, and rows per second of processor time."""
    start, full = measure(name, small), measure(name, large)
    wall, cpu = full["rows"] / full["wall_s"], full["rows"] / full["cpu_s"]
    has_target = name == next(iter(RUNS))
    target = f"{ROWS_TARGET:,}" if has_target else ""
    met = ("yes" if cpu >= ROWS_TARGET else "no") if has_target else ""
    memory = full["peak_mib"] - start["peak_mib"]
    size = large.stat().st_size / 1e6
    return f"| {name} | {size:,.0f} | {wall:,.0f} | {cpu:,.0f} | {memory:.0f} | {target} | {met} |", cpu


if __name__ == "__main__":
    main()
