"""Rows of a JSON array, one at a time, from a file of any size."""

import re
from collections.abc import Iterator

from .files import DataFile
from .json_text import parse_object
from .lines import BOM, CHUNK_BYTES, MAX_ROW_BYTES, Advance, starts_with_bom
from .problems import Problem, file_problem
from .records import Record
from .rows import Source
from .wording import quoted

# A whole string, a bracket, or the quote of a string that goes on past the end. Possessive, so linear on any input.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]', re.DOTALL)
_GAP = re.compile(rb"[\s,]*")
# What may stand in an array besides objects and arrays: up to the next comma, bracket or string.
_SCALAR = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^\s,\]\[{}"]++')
_FIRST_KEY = re.compile(rb'\{\s*+("[^"\\]{1,100}+")')


class _Window:
    """The part of the file from the present row on; grows by reading, shrinks as rows are taken."""

    def __init__(self, file: DataFile, advance: Advance):
        self.text = b""
        self.start = 0
        self.line = 1
        self.ended = False
        self._stream = file.stream
        self._advance = advance

    def grow(self) -> None:
        """Read another chunk, and let go of what was taken."""
        chunk = self._stream.read(CHUNK_BYTES)
        self._advance(len(chunk))
        self.ended = not chunk
        self.text = self.text[self.start :] + chunk
        self.start = 0

    def take(self, end: int) -> bytes:
        """The text up to `end`, which is then behind the window; counts its lines."""
        taken = self.text[self.start : end]
        self.line += taken.count(b"\n")
        self.start = end
        return taken

    def next_byte(self) -> tuple[bytes, int]:
        """The next byte after blank space and commas, not taken (empty at the end), and how many commas."""
        num_commas = 0
        while True:
            num_commas += self.take(_GAP.match(self.text, self.start).end()).count(b",")  # pyright: ignore[reportOptionalMemberAccess]
            if self.start < len(self.text) or self.ended:
                return self.text[self.start : self.start + 1], num_commas
            self.grow()


def json_array(file: DataFile, advance: Advance) -> Iterator[Record | Problem]:
    """Yield a record for every object of the array in `file`, a problem for every other item.

    Rows are found by their brackets and then read strictly one by one, so that a mistake inside one row costs that row
    only. A quote or bracket that is never closed ends the reading. What puts in doubt where rows end is a problem of
    the file.
    """
    window = _Window(file, advance)
    window.grow()
    if window.text.startswith(BOM):
        window.start = len(BOM)
        yield starts_with_bom(file.name)
    window.next_byte()
    window.take(window.start + 1)
    commas_due = item = 0
    first_key = b""
    while True:
        byte, num_commas = window.next_byte()
        at_end = byte in (b"]", b"")
        item += 1
        source = Source(file.name, window.line, 0 if at_end else item)
        if num_commas != (0 if at_end else commas_due):
            yield _comma(source, num_commas, at_end)
        if at_end:
            break
        commas_due = 1
        end = _closing(window) if byte in b"{[" else _scalar_end(window)
        if end is None:
            yield _never_closed(source, window)
            return
        raw = window.take(end)
        value = parse_object(raw, source)
        if isinstance(value, Problem):
            yield _several_rows(value) if _FIRST_KEY.findall(raw).count(first_key) > 1 else value
            continue
        if not first_key and (match := _FIRST_KEY.match(raw)):
            first_key = match[1]
        yield Record(value, source, raw)
    yield from _after_array(file.name, window, closed=byte == b"]")


def _several_rows(problem: Problem) -> Problem:
    """Return the problem of a row in which another starts, with the same key as the file's first row."""
    message = f"{problem.message}; further rows seem to start inside this one: is a quote or bracket not closed?"
    return problem._replace(message=message, scope="file")


def _after_array(name: str, window: _Window, closed: bool) -> Iterator[Problem]:
    source = Source(name, window.line)
    if not closed:
        message = 'the file ends before the array does: no closing "]"'
        yield file_problem(source, message, "truncated")
        return
    window.take(window.start + 1)
    if rest := window.next_byte()[0]:
        message = f"the array has ended, and {quoted(rest.decode('latin-1'))} follows; allowed: one array a file"
        yield file_problem(Source(name, window.line), message, "bad-json")


def _comma(source: Source, num_commas: int, at_end: bool) -> Problem:
    if at_end:
        message = "a comma stands before the end of the array; allowed: none after the last row"
    elif num_commas:
        message = f"{num_commas} commas stand before this row; allowed: one between rows, none before the first"
    else:
        message = "no comma stands between this row and the one before"
    return file_problem(source, f"not JSON: {message}", "bad-json")


def _closing(window: _Window) -> int | None:
    """Return where the object or array that starts the window ends; None if that is nowhere within `MAX_ROW_BYTES`."""
    while True:
        depth = 0
        for token in _TOKEN.finditer(window.text, window.start):
            byte = token[0]
            if byte in (b"{", b"["):
                depth += 1
            elif byte in (b"}", b"]"):
                depth -= 1
                if depth == 0:
                    return token.end()
            elif byte == b'"':
                break
        if window.ended or len(window.text) - window.start > MAX_ROW_BYTES:
            return None
        window.grow()


def _scalar_end(window: _Window) -> int | None:
    while True:
        match = _SCALAR.match(window.text, window.start)
        if match and (match.end() < len(window.text) or window.ended):
            return match.end()
        if window.ended or len(window.text) - window.start > MAX_ROW_BYTES:
            # A stray bracket is an item of its own.
            return window.start + 1 if not match and window.text[window.start] in b"}" else None
        window.grow()


def _never_closed(source: Source, window: _Window) -> Problem:
    start = quoted(window.text[window.start : window.start + 40].decode("utf-8", "replace"))
    if window.ended:
        message = (
            f"the file ends in the middle of the row that starts here with {start}: a quote or bracket is not closed"
        )
        return file_problem(source, message, "truncated")
    message = f"the row that starts here with {start} is longer than {MAX_ROW_BYTES:,} bytes, or a quote or bracket is "
    return file_problem(source, message + "not closed; the rest of the file was not read", "line-too-long")
