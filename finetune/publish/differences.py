"""In what a file on the Hub differs from the local one: which key of a config, which tensor of which shape."""

import json
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

LENGTH_BYTES = 8
# A header that safetensors itself would refuse is read no further.
MAX_HEADER_BYTES = 100_000_000
_MAX_JSON_BYTES = 1 << 20
_MAX_NAMED = 3
_MAX_VALUE = 60
# Returns the first so many bytes of a file on the Hub.
Read = Callable[[int], bytes]


def count_bytes_to_read(name: str, size: int, start: Callable[[], bytes]) -> int:
    """Return how much of a file is worth downloading: a config, or the header of safetensors.

    Args:
        name: of the file.
        size: in bytes.
        start: returns its first 8 bytes.
    """
    if name.endswith(".json") and size <= _MAX_JSON_BYTES:
        return size
    if not name.endswith(".safetensors") or size < LENGTH_BYTES:
        return 0
    (length,) = struct.unpack("<Q", start())
    return min(LENGTH_BYTES + length, size) if length <= MAX_HEADER_BYTES else 0


def explain(file: Path, size: int, read: Read, ignored: Collection[str] = ()) -> str:
    """Return what differs between `file` and what `read` gives of that on the Hub, which has `size` bytes.

    Of a config the keys with both values, of weights the tensors; empty where only keys in `ignored` differ, and where
    the file is neither or is damaged "other content".
    """
    length, same = count_bytes_to_read(file.name, size, lambda: read(LENGTH_BYTES)), ""
    try:
        theirs = json.loads(read(length)[LENGTH_BYTES if file.suffix == ".safetensors" else 0 :])
        own = json.loads(_read_start(file))
        if not isinstance(own, dict) or not isinstance(theirs, dict):
            raise ValueError
    except (ValueError, struct.error):
        return "other content"
    if file.suffix == ".safetensors":
        same = "the same tensors with other numbers"
        if own.get("__metadata__") != theirs.get("__metadata__"):
            same = "the same tensors with other metadata, and perhaps other numbers"
        own, theirs = ({name: _shape(of) for name, of in header.items() if _shape(of)} for header in (own, theirs))
    lines = [
        f"{name} is {_say(theirs, name)} on the Hub, and {_say(own, name)} in the folder"
        for name in sorted(own.keys() | theirs.keys())
        if own.get(name, _say) != theirs.get(name, _say) and name not in ignored
    ]
    if not lines:
        return same
    more = f", and {len(lines) - _MAX_NAMED:,} more" if len(lines) > _MAX_NAMED else ""
    return ", ".join(lines[:_MAX_NAMED]) + more


def _read_start(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = count_bytes_to_read(file.name, size, lambda: stream.read(LENGTH_BYTES))
        stream.seek(LENGTH_BYTES if file.suffix == ".safetensors" else 0)
        return stream.read(length - stream.tell())


def _shape(described: Any) -> str:
    """Return dtype and shape of a tensor as its header tells of them; nothing for the header's free texts."""
    if not isinstance(described, dict) or "dtype" not in described:
        return ""
    return f"{described['dtype']} {described.get('shape')}"


def _say(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "missing"
    text = values[name] if isinstance(values[name], str) else json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
