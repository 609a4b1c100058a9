"""Opening a file that a user named: what kind it is, or why it cannot be one of data."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from .problems import Problem, file_problem
from .rows import Source
from .wording import quoted, similar

FileKind = Literal["jsonl", "json", "csv", "tsv", "parquet"]

_KINDS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
SUFFIXES = tuple(_KINDS)
_HINTS = {
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".gz": "unpack it first: gunzip",
    ".zst": "unpack it first: unzstd",
    ".zip": "unpack it first: unzip",
    ".yaml": "a recipe is run by: seeklet train",
    ".yml": "a recipe is run by: seeklet train",
}
_PARQUET = b"PAR1"
_MAGIC = (
    (b"\x1f\x8b", "gzip data; unpack it first: gunzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data; unpack it first: unzstd"),
    (b"BZh", "bzip2 data; unpack it first: bunzip2"),
    (b"\xfd7zXZ", "xz data; unpack it first: unxz"),
    (b"PK\x03\x04", "a ZIP archive or an Excel sheet; unpack it, or save the sheet as CSV UTF-8"),
    (b"%PDF", "a PDF; extract the text first"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (b"ARROW1", "an Arrow file; save it as Parquet"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data; fetch it: git lfs pull"),
    (_PARQUET, "Parquet data; name it .parquet"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
_SPECIAL = (
    (stat.S_ISDIR, "is a folder; allowed: files"),
    (stat.S_ISFIFO, "is a pipe; allowed: files (data is read more than once)"),
    (stat.S_ISCHR, "is a device; allowed: files"),
    (stat.S_ISBLK, "is a device; allowed: files"),
    (stat.S_ISSOCK, "is a socket; allowed: files"),
)
_SNIFFED_BYTES = 1 << 16


class DataFile(NamedTuple):
    """A file open for reading from its start; whoever got it closes `stream`."""

    name: str
    kind: FileKind
    stream: BinaryIO
    num_bytes: int


def open_data_file(name: str) -> DataFile | Problem:
    """Return the file called `name`, or the problem with it: missing, unreadable, empty, or of another kind.

    `~` at its start is the user's home folder.
    """
    path = os.path.expanduser(name)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return _unusable(name, *_why_not(name, error))
    for is_special, message in _SPECIAL:
        if is_special(status.st_mode):
            return _unusable(name, "not-a-file", message + _files_inside(name, status.st_mode))
    suffix = Path(name).suffix.lower()
    if suffix not in _KINDS:
        hint = f"; {_HINTS[suffix]}" if suffix in _HINTS else ""
        message = f"has the ending {quoted(suffix)}; allowed: {', '.join(SUFFIXES)}{hint}"
        return _unusable(name, "unknown-file-type", message)
    try:
        stream = open(path, "rb")  # noqa: SIM115 the caller reads on
    except OSError as error:
        return _unusable(name, *_why_not(name, error))
    try:
        kind = _kind_by_content(name, _KINDS[suffix], stream.read(_SNIFFED_BYTES))
        stream.seek(0)
    except OSError as error:
        kind = _unusable(name, *_why_not(name, error))
    if isinstance(kind, Problem):
        stream.close()
        return kind
    return DataFile(name, kind, stream, status.st_size)


def _unusable(name: str, kind: str, message: str) -> Problem:
    return file_problem(Source(name), message, kind)


def _why_not(name: str, error: OSError | ValueError) -> tuple[str, str]:
    """Return kind and message for an error of the operating system."""
    if isinstance(error, FileNotFoundError):
        path = os.path.expanduser(name)
        if os.path.islink(path):
            return "missing-file", f"is a link to {quoted(os.readlink(path))}, which does not exist"
        return "missing-file", f"no such file{_similar(name)}"
    if isinstance(error, PermissionError):
        return "permission-denied", "may not be read by this user; see its permissions (ls -l)"
    if isinstance(error, ValueError):
        return "missing-file", "no such file: the name holds a NUL character"
    if error.errno == errno.ELOOP:
        return "link-loop", "is a link that leads back to itself"
    return "unreadable-file", f"cannot be read: {error.strerror or error}"


def _similar(name: str) -> str:
    """Return the name of a file in the same folder that may have been meant."""
    folder = os.path.dirname(name) or "."
    try:
        present = sorted(os.listdir(os.path.expanduser(folder)))
    except OSError:
        return f"; nor is there a folder {quoted(folder)}"
    close = similar(os.path.basename(name), present)
    return f"; did you mean {quoted(os.path.join(os.path.dirname(name), close))}?" if close else ""


def _files_inside(name: str, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        return ""
    try:
        names = os.listdir(os.path.expanduser(name))
        inside = sorted(file for file in names if Path(file).suffix.lower() in _KINDS)
    except OSError:
        return ""
    return f", such as {quoted(os.path.join(name, inside[0]))}" if inside else ""


def _kind_by_content(name: str, kind: FileKind, start: bytes) -> FileKind | Problem:
    """Return `kind`, or "jsonl" where a .json file holds lines, or the problem where name and content disagree."""
    if not start.strip():
        return _unusable(name, "empty-file", "is empty" if not start else "holds nothing but blank space")
    for magic, message in _MAGIC:
        if start.startswith(magic):
            return kind if (magic, kind) == (_PARQUET, "parquet") else _unusable(name, "wrong-content", f"is {message}")
    if kind == "parquet":
        return _unusable(
            name, "wrong-content", f"is not Parquet: it starts with {quoted(start[:16].decode('latin-1'))}"
        )
    if start.count(0) * 10 > len(start):
        return _unusable(name, "binary", "is binary data, or text in UTF-16; allowed: text in UTF-8")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind == "jsonl" and text.startswith(b"["):
        first_line = text.split(b"\n", 1)[0]
        if len(first_line.strip()) == 1 or first_line.startswith(b"[{"):
            return _unusable(name, "wrong-content", "is a JSON array, not JSON lines; name it .json")
    if kind == "json" and not text.startswith(b"["):
        return _json_without_array(name, text)
    return kind


def _json_without_array(name: str, text: bytes) -> FileKind | Problem:
    """Return "jsonl" where JSON lines have a .json name; a single object over many lines is not rows."""
    first_line, newline, _ = text.partition(b"\n")
    if newline and first_line.rstrip().endswith((b"{", b"[", b",")):
        message = "holds one JSON object; allowed: an array of rows [{…}, {…}], or one row a line"
        return _unusable(name, "not-rows", message)
    return "jsonl"
