"""Every text of what is published, read for secrets, personal data, paths and names of machines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .findings import Finding, error
from .private_rules import find_private
from .shards import read_metadata

# Pieces of words that a tokenizer learned from text are no texts; longer ones may be.
_MIN_VOCABULARY_TEXT = 16
# Keys of a config that say where it came from; nothing reads them.
ORIGIN_KEYS = ("_name_or_path", "name_or_path", "resume_from_checkpoint", "is_local", "local_files_only")
_TEXT = (".json", ".jinja", ".md", ".yaml", ".py", ".txt", "")
_MEND = "take it out; if it is a secret, make a new one where it was made, too"


def check_private(folder: Path, files: Sequence[str]) -> list[Finding]:
    """Return what in `files`, paths relative to `folder`, should not be published; no finding quotes it."""
    found = []
    for name in files:
        path = folder / name
        seen: set[tuple[str, str]] = set()
        for where, text in _texts(path):
            for kind, place in find_private(f"{where}: {text}" if _is_named(path) else text):
                if (where, kind) in seen:
                    continue
                seen.add((where, kind))
                spot = where if _is_named(path) else place
                found.append(_finding(name, spot, kind))
    return found


def is_origin(where: str) -> bool:
    """Return whether a key holds only where a file came from, so that it may be left out."""
    return where.rpartition(".")[2] in ORIGIN_KEYS or where.startswith("__metadata__.")


def _finding(name: str, where: str, kind: str) -> Finding:
    is_fixable = is_origin(where) and name.endswith((".json", ".safetensors"))
    wrong = f"holds what looks like a {kind}" if kind[0] not in "aeio" else f"holds what looks like an {kind}"
    if where.endswith("base_model_name_or_path"):
        return error(name, where, wrong, "name the base on the Hub with --base OWNER/NAME")
    return error(name, where, wrong, "leave it out" if is_fixable else _MEND, fixable=is_fixable)


def _is_named(path: Path) -> bool:
    """Return whether texts of this file are values with a key, and not one text with lines."""
    return path.suffix in (".json", ".safetensors")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each text of a file with its key; a file that is one text has an empty one."""
    if path.suffix == ".safetensors":
        try:
            metadata = read_metadata(path)
        except (OSError, ValueError, AttributeError):
            # What is no such file is told of where its header is read.
            return
        yield from _strings("__metadata__", metadata)
    elif path.suffix == ".png":
        yield "", _png_texts(path)
    elif path.suffix in _TEXT or path.name.startswith(("LICENSE", "NOTICE")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix != ".json":
            yield "", text
            return
        try:
            value = json.loads(text)
        except ValueError:
            yield "", text
            return
        yield from _vocabulary(value) if path.name in ("tokenizer.json", "vocab.json") else _strings("", value)


def _strings(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(f"{key}.{name}" if key else str(name), inner)
            if isinstance(name, str) and len(name) >= _MIN_VOCABULARY_TEXT and not name.isidentifier():
                yield f"{key}.<a key>".lstrip("."), name
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(f"{key}[{i}]", inner)


def _vocabulary(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts of a tokenizer's file; of its vocabulary only what is too long to be a piece of a word."""
    if not isinstance(value, dict):
        return
    model = value.get("model")
    if not isinstance(model, dict):
        yield from _long("", value)
        return
    for name, inner in value.items():
        if name != "model":
            yield from _strings(name, inner)
    for name, inner in model.items():
        if name in ("vocab", "merges"):
            yield from _long(f"model.{name}", inner)
        else:
            yield from _strings(f"model.{name}", inner)


def _long(key: str, entries: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(entries, dict | list):
        return
    for i, entry in enumerate(entries):
        text = entry if isinstance(entry, str) else entry[0] if isinstance(entry, list) and entry else ""
        if isinstance(text, str) and len(text) >= _MIN_VOCABULARY_TEXT:
            # As byte-level tokenizers write spaces.
            yield f"{key}[{i}]", text.replace("\u0120", " ").replace("\u2581", " ")


def _png_texts(path: Path) -> str:
    """Return the text chunks of a picture, which plotting libraries write their settings to."""
    data, texts, position = path.read_bytes(), [], 8
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind in (b"tEXt", b"iTXt"):
            texts.append(data[position + 8 : position + 8 + length].replace(b"\0", b" ").decode("latin-1"))
        position += 12 + length
    return "\n".join(texts)
