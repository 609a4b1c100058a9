"""What `--fix` mends, in the staging folder: config keys, origins, a generation config, metadata of the weights."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from .engine_keys import mend_keys
from .findings import Finding
from .private_files import ORIGIN_KEYS
from .served_with import GENERATION
from .shards import read_metadata, read_shards


def mend(folder: Path, findings: Sequence[Finding], with_code: bool = False) -> list[Finding]:
    """Mend in `folder`, which is a copy, those of `findings` that are fixable; return them.

    Raises:
        OSError: writing fails.
    """
    done = [finding for finding in findings if finding.fixable]
    for file in sorted({finding.file for finding in done}):
        path = folder / file
        if file == GENERATION and not path.is_file():
            GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        elif path.suffix == ".safetensors":
            _mend_metadata(path)
        else:
            values = json.loads(path.read_text(encoding="utf-8"))
            values = _without_origins(values)
            if file == "config.json":
                values = mend_keys(values, read_shards(folder), with_code)
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return done


def _without_origins(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origins(inner) for name, inner in value.items() if name not in ORIGIN_KEYS}
    return [_without_origins(inner) for inner in value] if isinstance(value, list) else value


def _mend_metadata(file: Path) -> None:
    """Leave of the free texts in the header only the format; the header keeps its length, so that no weight moves."""
    if file.is_symlink():
        original = file.resolve()
        file.unlink()
        shutil.copyfile(original, file)
    kept = {name: value for name, value in read_metadata(file).items() if name == "format"}
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length)) | {"__metadata__": kept or {"format": "pt"}}
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) <= length:
            stream.seek(8)
            stream.write(text.ljust(length))
