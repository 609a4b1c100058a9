"""Rows of a CSV or TSV file."""

import csv
from collections.abc import Iterator
from itertools import chain

from .files import DataFile
from .json_text import as_raw, invalid_utf8
from .lines import MAX_ROW_BYTES, Advance, Line, numbered_lines
from .problems import Problem
from .records import Header, Record
from .rows import Source
from .wording import listed, quoted

_DELIMITERS = ",;\t|"
# What the csv module says of a quote that goes on to the end of the file, or over more than its limit.
_UNCLOSED = ("unexpected end of data", "field larger than field limit")
# A quote that is not closed is given up after so many lines, even short ones: they are held to be read again.
_MAX_ROW_LINES = 20_000


def csv_rows(file: DataFile, advance: Advance) -> Iterator[Header | Record | Problem]:
    """Yield the header, then a record of texts for every row, a problem for every row that does not fit it.

    The delimiter is the one of comma, semicolon, tab and bar that the header has most of. A row is named by the line
    it starts on.
    """
    # The csv module's limit of 131,072 characters a field is for the whole process.
    limit = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield from _rows(file.name, numbered_lines(file.stream, file.name, advance))
    finally:
        csv.field_size_limit(limit)


def _rows(name: str, lines: Iterator[Line | Problem]) -> Iterator[Header | Record | Problem]:
    columns: tuple[str, ...] | None = None
    delimiter = ","
    while True:
        table = _Table(name, lines, delimiter if columns else None)
        for item in table.rows():
            if columns is not None or isinstance(item, Problem):
                yield item if isinstance(item, Problem) else _record(item, columns or ())
                continue
            columns, delimiter = tuple(field.strip() for field in item[0]), table.delimiter
            if problem := _bad_header(columns, item[1]):
                yield problem
                return
            yield Header(columns, item[1])
        if columns is None or not table.unclosed:
            return
        # Everything after the quote was taken for one field: go on with the line after it.
        lines = chain(table.unclosed, lines)


_Fields = tuple[list[str], Source, bytes]


class _Table:
    """Runs the csv module over lines, keeping those of the present row."""

    def __init__(self, name: str, lines: Iterator[Line | Problem], delimiter: str | None):
        self.delimiter = delimiter or ","
        self.unclosed: list[Line | Problem] = []
        self._name = name
        self._lines = lines
        self._sniff = delimiter is None
        self._present: list[Line] = []
        self._present_bytes = 0
        self._aside: list[Problem] = []

    def rows(self) -> Iterator[_Fields | Problem]:
        """Fields, place and text of each row; problems in between. Stops early at a quote that is never closed."""
        texts = self._texts()
        if self._sniff:
            first = next((text for text in texts if text.strip()), "")
            self.delimiter = max(_DELIMITERS, key=first.count)
            texts = chain([first], texts)
        reader = csv.reader(texts, delimiter=self.delimiter, strict=True)
        while True:
            try:
                fields = next(reader)
                error = ""
            except StopIteration:
                yield from self._aside
                return
            except csv.Error as reason:
                fields, error = [], str(reason)
            present, self._present, self._present_bytes = self._present, [], 0
            problems, self._aside = self._aside, []
            yield from problems
            source = Source(self._name, present[0].number if present else 0)
            if error.startswith(_UNCLOSED):
                yield _unclosed(source, present)
                self.unclosed = list(present[1:])
                return
            raw = b"\n".join(line.text for line in present)
            if error:
                yield Problem(source, "", f"not CSV: {_plainer(error)}", "error", "bad-csv", as_raw(raw))
            elif problem := invalid_utf8(raw, source):
                yield problem
            elif fields:
                yield fields, source, raw

    def _texts(self) -> Iterator[str]:
        for line in self._lines:
            if isinstance(line, Problem):
                self._aside.append(line)
                continue
            self._present.append(line)
            self._present_bytes += len(line.text)
            if self._present_bytes > 2 * MAX_ROW_BYTES or len(self._present) > _MAX_ROW_LINES:
                raise csv.Error(_UNCLOSED[0])
            yield line.text.removesuffix(b"\r").decode("utf-8", "replace") + "\n"


def _record(fields: _Fields, columns: tuple[str, ...]) -> Record | Problem:
    texts, source, raw = fields
    if len(texts) != len(columns):
        message = f"has {len(texts)} fields; the header has {len(columns)}: {listed(columns)}"
        hint = "; a field that holds the delimiter needs double quotes" if len(texts) > len(columns) else ""
        return Problem(source, "", message + hint, "error", "wrong-field-count", as_raw(raw))
    return Record(dict(zip(columns, texts, strict=True)), source, raw)


def _bad_header(columns: tuple[str, ...], source: Source) -> Problem | None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if "" in columns and len(columns) > 1 and "" in repeated:
        message = "the header has columns without a name; each needs one of its own"
        return Problem(source, "header", message, "error", "bad-header")
    if repeated:
        message = f"names {listed(repeated)} more than once; each column needs a name of its own"
        return Problem(source, "header", message, "error", "bad-header")
    return None


def _unclosed(source: Source, present: list[Line]) -> Problem:
    start = quoted(present[0].text.decode("utf-8", "replace") if present else "")
    message = f"a quote in the row that starts here with {start} is never closed; double the quotes inside a field"
    raw = as_raw(present[0].text) if present else ""
    return Problem(source, "", message, "error", "unclosed-quote", raw)


def _plainer(error: str) -> str:
    if "expected after" in error:
        return f"{error}: quotes inside a field are doubled, and the whole field is quoted"
    if "new-line character" in error:
        return "a carriage return (CR) stands alone in it; end lines in LF, and quote fields that hold one"
    return error
