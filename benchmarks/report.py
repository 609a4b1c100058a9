"""What every benchmark says of the machine, and where its table and ratios are kept."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

NO_GPU = "not yet run on a GPU"


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
        "gpu": NO_GPU,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Make the folder of the results before anything is measured, or end with what is wrong."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {folder}: {error.strerror}")


def keep(folder: Path, name: str, about: dict[str, Any], lines: Sequence[str], ratios: dict[str, float]) -> None:
    """Write the table and the ratios to `folder`, with date, what `name` says and the device as the files' name."""
    device = f"cpu_{about['threads']}threads" if about["gpu"] == NO_GPU else "-".join(about["gpu"].lower().split())
    stem = folder / "_".join(filter(None, (about["date"], name, device)))
    stem.with_suffix(".json").write_text(json.dumps({**about, "ratios": ratios}, indent=1) + "\n")
    note = ", ".join(f"{key} {value}" for key, value in about.items())
    stem.with_suffix(".md").write_text("\n".join([*lines, "", note]) + "\n")
    print(f"\n{note}\nkept in {stem}.json and .md")
