"""Which files of a folder an earlier export wrote: those it may replace, and no others."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..atomic_files import write_text

_RECORD = ".seeklet-export.json"


def foreign_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are in `folder` and are not as an export left them: someone else's, or edited."""
    record = _read(folder)
    return [name for name in names if (folder / name).exists() and record.get(name) != _state(folder / name)]


def record_file(file: Path) -> None:
    """Remember that an export wrote `file`, as it is now.

    Raises:
        OSError: it cannot be written down.
    """
    record = {name: state for name, state in _read(file.parent).items() if (file.parent / name).exists()}
    write_text(file.parent / _RECORD, json.dumps(record | {file.name: _state(file)}, indent=2) + "\n")


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _read(folder: Path) -> dict[str, list[int]]:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
