"""Rows of a JSON-lines file."""

from collections.abc import Iterator

from .files import DataFile
from .json_text import parse_object
from .lines import Advance, line_blocks
from .problems import Problem
from .records import Record
from .rows import Source


def json_lines(file: DataFile, advance: Advance) -> Iterator[Record | Problem]:
    """Yield a record for every line that holds an object, a problem for every other; count blank lines and CRLF."""
    name = file.name
    first_blank = first_return = num_blank = num_returns = 0
    for item in line_blocks(file.stream, name, advance):
        if isinstance(item, Problem):
            yield item
            continue
        first, texts, complete = item
        for number, text in enumerate(texts, first):
            if text.endswith(b"\r"):
                num_returns += 1
                first_return = first_return or number
            if not text or text.isspace():
                num_blank += 1
                first_blank = first_blank or number
                continue
            source = Source(name, number)
            value = parse_object(text, source, complete=complete)
            yield value if isinstance(value, Problem) else Record(value, source, text)
    if num_blank:
        yield _note(name, first_blank, "blank-lines", "is blank, and skipped", num_blank)
    if num_returns:
        yield _note(name, first_return, "crlf", "ends in CRLF (Windows), and is read as if it ended in LF", num_returns)


def _note(name: str, line: int, kind: str, message: str, number: int) -> Problem:
    more = f"; the first of {number:,} such lines" if number > 1 else ""
    return Problem(Source(name, line), "", message + more, "warning", kind)
