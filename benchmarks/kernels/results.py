"""Results of the kernels on a GPU: one file of sections, renewed one by one, so that a run cut short loses nothing."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import machine


def about() -> dict[str, Any]:
    """Return what the figures depend on, the GPU and its CUDA among it."""
    found = machine()
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def record(folder: Path, section: str, lines: list[str], ratios: dict[str, float]) -> Path:
    """Write a section of today's results on this GPU, in place of an earlier one; return the table's file."""
    found = about()
    device = "-".join(str(found["gpu"]).lower().split())
    file = folder / f"{found['date']}_kernels_{device}.json"
    sections = json.loads(file.read_text(encoding="utf-8"))["sections"] if file.is_file() else {}
    sections[section] = {"lines": lines, "ratios": ratios}
    _write(file, json.dumps({**found, "sections": sections}, indent=1) + "\n")
    texts = ["\n".join([f"## {name}", "", *each["lines"], ""]) for name, each in sorted(sections.items())]
    note = ", ".join(f"{key} {value}" for key, value in found.items())
    _write(file.with_suffix(".md"), "\n".join([*texts, note]) + "\n")
    return file.with_suffix(".md")


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
