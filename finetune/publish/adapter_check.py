"""Whether an adapter is whole: its factors come in pairs of one rank, hold numbers, and change something."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from seeklet.modeling import CheckpointError
from seeklet.modeling.safetensors_io import read_header

from ..published import is_local
from .findings import Finding, error

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_AGAIN = "train or export the adapter again"


def check_adapter(folder: Path, prefix: str = "") -> list[Finding]:
    """Return what is wrong with the adapter in `folder`; `prefix` goes before the names of its files."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError) as problem:
        return [error(prefix + CONFIG, "", f"cannot be read: {problem}".replace(f"{folder}/", ""), _AGAIN)]
    found = []
    base = config.get("base_model_name_or_path")
    if not base or is_local(str(base)):
        wrong = "names no base on the Hub" if not base else "is a folder of this machine, where nobody finds the base"
        mend = "name the base on the Hub with --base OWNER/NAME"
        found.append(error(prefix + CONFIG, "base_model_name_or_path", wrong, mend))
    try:
        header = read_header(folder / WEIGHTS)
    except CheckpointError as problem:
        said = str(problem).removeprefix(f"{folder / WEIGHTS}: ")
        return [*found, error(prefix + WEIGHTS, "", said, _AGAIN)]
    return [*found, *_check_factors(folder, prefix + WEIGHTS, header, config)]


def _check_factors(folder: Path, file: str, header: dict[str, Any], config: dict[str, Any]) -> list[Finding]:
    found, changes = [], False
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for name in sorted(header):
            tensor = tensors.get_tensor(name)
            if not bool(torch.isfinite(tensor.float()).all()):
                found.append(error(file, name, "holds NaN or infinity", "go back to an earlier checkpoint"))
            if ".lora_A" not in name:
                changes = changes or bool(tensor.any())
                continue
            other = name.replace(".lora_A", ".lora_B")
            if other not in header:
                found.append(error(file, name, f"has no {other} beside it", _AGAIN))
            elif tensor.ndim == 2 and tensor.shape[0] != header[other].shape[1]:
                wrong = f"has rank {tensor.shape[0]}, and {other} has {header[other].shape[1]}"
                found.append(error(file, name, wrong, _AGAIN))
            elif tensor.ndim == 2 and not config.get("rank_pattern") and tensor.shape[0] % int(config.get("r") or 1):
                found.append(
                    error(file, name, f"has rank {tensor.shape[0]}, and the config says {config['r']}", _AGAIN)
                )
    for name in sorted(name for name in header if ".lora_B" in name):
        if name.replace(".lora_B", ".lora_A") not in header:
            found.append(error(file, name, f"has no {name.replace('.lora_B', '.lora_A')} beside it", _AGAIN))
    if header and not changes:
        name = next((name for name in sorted(header) if ".lora_B" in name), sorted(header)[0])
        found.append(error(file, name, "is zero, and so are all others: the adapter changes nothing", _AGAIN))
    return found
