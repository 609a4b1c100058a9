"""The weights of a folder as their headers tell of them: every file opens, and the index says what is where."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seeklet.modeling import CheckpointError
from seeklet.modeling.checkpoint_config import read_index
from seeklet.modeling.safetensors_io import StoredTensor, read_header

from .findings import Finding, error

INDEX = "model.safetensors.index.json"
AGAIN = "save the model again, or copy the file anew from where it was whole"


@dataclass
class Shards:
    """The tensors of a checkpoint by name, the files that hold them, in order, and what is wrong with them."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_shards(folder: Path) -> Shards:
    """Return the weights in `folder`; only headers and the index are read."""
    shards = Shards()
    weight_map = _read_weight_map(folder, shards)
    files = set(weight_map.values()) if weight_map else set()
    files |= {path.name for path in folder.glob("model*.safetensors")}
    for file in sorted(files):
        path = folder / file
        try:
            header = read_header(path)
        except CheckpointError as problem:
            said = str(problem).removeprefix(f"{path}: ")
            where = next((name for name, of in weight_map.items() if of == file), "") if weight_map else ""
            shards.findings.append(error(file, where, said, AGAIN))
            continue
        shards.files.append(path)
        for name in sorted(shards.tensors.keys() & header.keys()):
            other = Path(shards.tensors[name].file).name
            shards.findings.append(error(file, name, f"is in {other}, too", "delete the file that is not the model's"))
        shards.tensors.update(header)
    if weight_map is not None:
        _check_index(weight_map, shards)
    elif len(shards.files) > 1:
        shards.findings.append(error(INDEX, "", "is missing, and there are several files of weights", AGAIN))
    return shards


def read_metadata(file: Path) -> Any:
    """Return the free texts in the header of a safetensors file, which was read before."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)).get("__metadata__", {})


def _read_weight_map(folder: Path, shards: Shards) -> dict[str, str] | None:
    if not (folder / INDEX).is_file():
        return None
    try:
        return read_index(str(folder / INDEX))
    except CheckpointError as problem:
        said = str(problem).removeprefix(f"{folder / INDEX}: ")
        shards.findings.append(error(INDEX, "", said, AGAIN))
        return {}


def _check_index(weight_map: dict[str, str], shards: Shards) -> None:
    there = {path.name for path in shards.files}
    for name, file in weight_map.items():
        if file not in there:
            continue
        found = shards.tensors.get(name)
        if found is None:
            shards.findings.append(error(INDEX, name, f"is not in {file}, where the index has it", AGAIN))
        elif Path(found.file).name != file:
            wrong = f"is in {Path(found.file).name}, and the index says {file}"
            shards.findings.append(error(INDEX, name, wrong, AGAIN))
    for name in sorted(shards.tensors.keys() - weight_map.keys()) if weight_map else ():
        file = Path(shards.tensors[name].file).name
        shards.findings.append(error(file, name, "is not in the index", AGAIN))
