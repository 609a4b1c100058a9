"""Files told apart by their content: SHA-256, streamed, and not again where size and time say it is the same file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of a model that a user named, larger files are told apart by name and size: nobody waits for 700 GB to be read.
READ_WHOLE_BYTES = 2**24
FileFacts = dict[str, Any]


def hash_file(path: Path, known: Mapping[str, Any] | None = None) -> FileFacts:
    """Return size, time and SHA-256 of a file; the last is taken from `known`, where size and time are the same there.

    Raises:
        OSError: it cannot be read.
    """
    found = path.stat()
    facts: FileFacts = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    if known is not None and all(known.get(key) == value for key, value in facts.items()):
        return {**facts, "sha256": known["sha256"]}
    with path.open("rb") as file:
        return {**facts, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def hash_product(path: Path, known: Mapping[str, FileFacts] | None = None) -> dict[str, FileFacts]:
    """Return the facts of a product's files by their paths within it; of one that is a file, by its name.

    Raises:
        OSError: one cannot be read, or nothing is there.
    """
    known = known or {}
    if path.is_file():
        return {path.name: hash_file(path, known.get(path.name))}
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if not names:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return {name: hash_file(path / name, known.get(name)) for name in names}


def hash_together(files: Mapping[str, FileFacts]) -> str:
    """Return one SHA-256 for the names and contents of files."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_model(folder: Path) -> str:
    """Return a SHA-256 of a model's folder: names, sizes, and the content of all files but those of the weights.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        content = file.read_bytes() if size <= READ_WHOLE_BYTES else b""
        digest.update(f"{file.name} {size} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()
