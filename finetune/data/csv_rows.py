"""Rows of a CSV or TSV file."""

import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain

from .files import DataFile
from .json_text import as_raw, invalid_utf8
from .lines import MAX_ROW_BYTES, Advance, Line, numbered_lines
from .problems import Problem, file_problem
from .records import Header, Record
from .rows import Source
from .wording import listed, quoted

_DELIMITERS = ",;\t|"
# What the csv module says of a quote that goes on to the end of the file, or over more than its limit.
_UNCLOSED = ("unexpected end of data", "field larger than field limit")
# A quote that is not closed is given up after so many lines, even short ones: they are held to be read again.
_MAX_ROW_LINES = 20_000
# Lines read again: every line earns so many, and any row may take that many, so that time stays linear in the file.
_LINES_AGAIN = 4


def csv_rows(file: DataFile, advance: Advance) -> Iterator[Header | Record | Problem]:
    """Yield the header, then a record of texts for every row, a problem for every row that does not fit it.

    The delimiter of a .tsv is the tab; else it is the one of comma, semicolon, tab and bar that the header has most of.
    A row is named by the line it starts on.
    """
    # The csv module's limit of 131,072 characters a field is for the whole process.
    limit = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        lines = numbered_lines(file.stream, file.name, advance)
        yield from _rows(_Table(file.name, lines, "\t" if file.kind == "tsv" else None))
    finally:
        csv.field_size_limit(limit)


def _rows(table: "_Table") -> Iterator[Header | Record | Problem]:
    columns: tuple[str, ...] | None = None
    for item in table.rows():
        if isinstance(item, Problem):
            if columns is None and item.severity == "error":
                yield item._replace(scope="file")
                return
            yield item
        elif columns is not None:
            yield _record(item, columns)
        else:
            columns = tuple(field.strip() for field in item[0])
            if problem := _bad_header(columns, item[1]):
                yield problem
                return
            yield Header(columns, item[1])


_Fields = tuple[list[str], Source, bytes]


class _Table:
    """Runs the csv module over lines, keeping those of the present row."""

    def __init__(self, name: str, lines: Iterator[Line | Problem], delimiter: str | None):
        self._name = name
        self._lines = lines
        self._delimiter = delimiter
        self._present: list[Line] = []
        self._present_bytes = 0
        self._aside: list[Problem] = []
        # Lines after one whose quotes are wrong, to be read again; and whether they still are in doubt.
        self._again: deque[Line] = deque()
        self._in_doubt = False
        self._num_columns = 0
        # How many more lines may be read again.
        self._allowance = 2 * _MAX_ROW_LINES

    def rows(self) -> Iterator[_Fields | Problem]:
        """Fields, place and text of each row; problems in between. After a wrong quote the next line is next."""
        reader = self._reader()
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
            self._allowance += _LINES_AGAIN
            if error:
                # It may have swallowed sound rows: only the line it began with is surely wrong.
                yield self._wrong_quote(present[:1], error)
                self._in_doubt = True
                self._allowance -= len(present) - 1
                self._again.extendleft(reversed(present[1:]))
                reader = self._reader()
                continue
            source = Source(self._name, present[0].number if present else 0)
            raw = b"\n".join([line.text for line in present])
            self._num_columns = self._num_columns or len(fields)
            if problem := invalid_utf8(raw, source):
                yield problem
            elif self._in_doubt and b'""' not in raw and any('"' in field for field in fields):
                # The end of a field over several lines, at whose beginning a quote is wrong.
                yield self._wrong_quote(present, "a quote in mid-field follows a row whose quotes are wrong")
            elif fields:
                self._in_doubt = self._in_doubt and len(fields) != self._num_columns
                yield fields, source, raw

    def _reader(self) -> Iterator[list[str]]:
        texts = self._texts()
        if self._delimiter is None:
            first = next((text for text in texts if text.strip()), "")
            self._delimiter = max(_DELIMITERS, key=first.count)
            texts = chain([first], texts)
        return csv.reader(texts, delimiter=self._delimiter, strict=True)

    def _texts(self) -> Iterator[str]:
        while (line := self._next()) is not None:
            if isinstance(line, Problem):
                self._aside.append(line)
                continue
            self._present.append(line)
            self._present_bytes += len(line.text)
            too_many = len(self._present) > max(_LINES_AGAIN, min(_MAX_ROW_LINES, self._allowance))
            if too_many or self._present_bytes > 2 * MAX_ROW_BYTES:
                raise csv.Error(_UNCLOSED[0])
            yield line.text.removesuffix(b"\r").decode("utf-8", "replace") + "\n"

    def _next(self) -> Line | Problem | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _wrong_quote(self, lines: list[Line], error: str) -> Problem:
        source = Source(self._name, lines[0].number if lines else 0)
        raw = b"\n".join([line.text for line in lines])
        if error.startswith(_UNCLOSED):
            start = quoted(raw.decode("utf-8", "replace"))
            message = (
                f"a quote in the row that starts here with {start} is never closed; double the quotes inside a field"
            )
            return Problem(source, "", message, "error", "unclosed-quote", as_raw(raw))
        return Problem(source, "", f"not CSV: {_plainer(error)}", "error", "bad-csv", as_raw(raw))


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
        return file_problem(source, message, "bad-header", "header")
    if repeated:
        message = f"names {listed(repeated)} more than once; each column needs a name of its own"
        return file_problem(source, message, "bad-header", "header")
    return None


def _plainer(error: str) -> str:
    if "expected after" in error:
        return f"{error}: quotes inside a field are doubled, and the whole field is quoted"
    if "new-line character" in error:
        return "a carriage return (CR) stands alone in it; end lines in LF, and quote fields that hold one"
    return error
