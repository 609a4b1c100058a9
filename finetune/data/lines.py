"""Lines of a file of any size, numbered, in constant memory."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from .json_text import as_raw
from .problems import Problem
from .rows import Source

# Told how many more bytes of the file have been read.
Advance = Callable[[int], object]

# 1 MiB reads are within 2 % of the fastest size measured, and small beside the interpreter.
CHUNK_BYTES = 1 << 20
# More than two million tokens: no model's context holds such a row.
MAX_ROW_BYTES = 8 << 20
# Of a row that is longer, enough to find it again.
KEPT_BYTES = 1000
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line without its newline; `complete` is False for a last line that has none."""

    number: int
    text: bytes
    complete: bool


def numbered_lines(stream: BinaryIO, file: str, advance: Advance) -> Iterator[Line | Problem]:
    """Yield every line of `stream`, and a problem in place of each that is longer than `MAX_ROW_BYTES`.

    A byte order mark at the start is taken off and reported.
    """
    for item in line_blocks(stream, file, advance):
        if isinstance(item, Problem):
            yield item
        else:
            number, texts, complete = item
            for text in texts:
                yield Line(number, text, complete)
                number += 1


def line_blocks(stream: BinaryIO, file: str, advance: Advance) -> Iterator[tuple[int, list[bytes], bool] | Problem]:
    """Yield the lines of `numbered_lines` many at a time: the number of the first, all their texts, and `complete`."""
    number = 1
    rest = b""
    # Bytes of the present line that were let go because it is too long, and how it started.
    dropped = 0
    start = b""
    first = True
    while chunk := stream.read(CHUNK_BYTES):
        advance(len(chunk))
        if first:
            first = False
            if chunk.startswith(BOM):
                chunk = chunk[len(BOM) :]
                yield starts_with_bom(file)
        texts = (rest + chunk).split(b"\n")
        rest = texts.pop()
        # Only the first can be so long: the others lie within the chunk.
        if texts and len(texts[0]) + dropped > MAX_ROW_BYTES:
            yield _too_long(file, number, start or texts[0], len(texts[0]) + dropped)
            dropped, start = 0, b""
            del texts[0]
            number += 1
        if texts:
            yield number, texts, True
            number += len(texts)
        if len(rest) + dropped > MAX_ROW_BYTES:
            start = start or rest[:KEPT_BYTES]
            dropped += len(rest)
            rest = b""
    if dropped:
        yield _too_long(file, number, start, dropped + len(rest))
    elif rest:
        yield number, [rest], False


def starts_with_bom(file: str) -> Problem:
    """Return the warning for a byte order mark at the start of `file`."""
    message = "starts with a byte order mark, which is skipped here and may upset other readers; save without BOM"
    return Problem(Source(file, 1), "", message, "warning", "bom")


def _too_long(file: str, number: int, start: bytes, num_bytes: int) -> Problem:
    message = f"is {num_bytes:,} bytes long; allowed: {MAX_ROW_BYTES:,} bytes a row"
    raw = as_raw(start[:KEPT_BYTES])
    return Problem(Source(file, number), "", message, "error", "line-too-long", raw, num_bytes=num_bytes)
