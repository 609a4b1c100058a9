"""The files that go up: what they were when the upload began, and their hashes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import PublishError
from ..limits import MAX_SHARD_GB

READ_BYTES = 1 << 20
# A shard of 5 GB holds a header, too, and sizes are rounded up to a tensor.
_SHARD_SLACK = 1.05


@dataclass
class LocalFile:
    """A file as it was found; its sha256 is known once it was read."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    sha256: str = ""
    _blob: str = field(default="", repr=False)

    def read_hash(self) -> str:
        """Return the sha256 of the content, reading it where it is not known."""
        if not self.sha256:
            digest = hashlib.sha256()
            with self.path.open("rb") as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
            self.sha256 = digest.hexdigest()
        return self.sha256

    def read_blob_hash(self) -> str:
        """Return git's hash of the content, as the Hub gives it for small files."""
        if not self._blob:
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            with self.path.open("rb") as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
            self._blob = digest.hexdigest()
        return self._blob


def list_local_files(folder: Path, files: Sequence[str]) -> list[LocalFile]:
    """Return the files by these paths relative to `folder`, large ones last.

    Raises:
        PublishError: one is missing, not a file, outside of the folder, empty of name, or a shard above the limit.
    """
    if not files:
        raise PublishError(f"{folder}: there is nothing to publish")
    found = []
    for name in sorted(set(files)):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or ".git" in parts:
            raise PublishError(f"{folder}: {name!r} is no path within the folder")
        path = folder / name
        if not path.is_file():
            raise PublishError(f"{path}: no such file, or not a file")
        stat = path.stat()
        limit = MAX_SHARD_GB * 1e9 * _SHARD_SLACK
        if name.endswith(".safetensors") and stat.st_size > limit:
            raise PublishError(
                f"{path}: {stat.st_size / 1e9:.1f} GB in one file; allowed: {MAX_SHARD_GB:g} GB; save the model again "
                f'with max_shard_size="{MAX_SHARD_GB:g}GB"'
            )
        if not os.access(path, os.R_OK):
            raise PublishError(f"{path}: cannot be read")
        found.append(LocalFile(name, path, stat.st_size, stat.st_mtime_ns))
    return sorted(found, key=lambda file: (file.size, file.name))


def check_unchanged(files: Sequence[LocalFile]) -> None:
    """Check that no file was written to since it was listed.

    Raises:
        PublishError: one was; what is on the Hub is as it was.
    """
    for file in files:
        stat = file.path.stat() if file.path.exists() else None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
            raise PublishError(f"{file.path}: was changed on the way; nothing was committed; run this again")


def read_parts(file: LocalFile, part_bytes: int) -> Iterator[bytes]:
    """Give the file in parts, from the first to the last, and note its sha256 at the end."""
    digest = hashlib.sha256()
    with file.path.open("rb") as stream:
        while part := stream.read(part_bytes):
            digest.update(part)
            yield part
    file.sha256 = digest.hexdigest()
