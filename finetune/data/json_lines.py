"""Rows of a JSON-lines file."""

from collections.abc import Iterator

from .files import DataFile
from .json_text import parse_object
from .lines import Advance, numbered_lines
from .problems import Problem
from .records import Record
from .rows import Source


def json_lines(file: DataFile, advance: Advance) -> Iterator[Record | Problem]:
    """A record for every line that holds an object, a problem for every other; blank lines and CRLF are counted."""
    name = file.name
    blank: list[int] = []
    with_return: list[int] = []
    num_blank = num_returns = 0
    for line in numbered_lines(file.stream, name, advance):
        if isinstance(line, Problem):
            yield line
            continue
        number, text, complete = line
        if text.endswith(b"\r"):
            num_returns += 1
            with_return = with_return or [number]
        if not text or text.isspace():
            num_blank += 1
            blank = blank or [number]
            continue
        source = Source(name, number)
        value = parse_object(text, source, complete=complete)
        yield value if isinstance(value, Problem) else Record(value, source, text)
    if blank:
        yield _note(name, blank[0], "blank-lines", f"first of {num_blank:,} blank lines, which are skipped")
    if with_return:
        message = f"first of {num_returns:,} lines that end in CRLF (Windows); read as if they ended in LF"
        yield _note(name, with_return[0], "crlf", message)


def _note(name: str, line: int, kind: str, message: str) -> Problem:
    return Problem(Source(name, line), "", message, "warning", kind)
