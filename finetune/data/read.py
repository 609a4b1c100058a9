"""Rows of any number of files and Hub data sets, one after the other, and every problem on the way."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from .csv_rows import csv_rows
from .files import DataFile, open_data_file
from .formats import convert
from .hub_rows import PREFIX, hub_rows
from .json_array import json_array
from .json_lines import json_lines
from .json_text import MAX_DEPTH, as_raw, nesting
from .layouts import FileLayouts, Layout, Layouts
from .lines import Advance
from .problems import Problem, file_problem
from .records import Header, Record
from .rows import Message, Row, Source
from .settings import DataSettings
from .validate import is_plain, validate

# Told of each layout of each file when it first comes up.
LayoutSeen = Callable[[str, Layout], object]
# From the columns of a table to those that are wanted.
NeededColumns = Callable[[tuple[str, ...]], list[str]]


def _nothing(*_: object) -> None:
    pass


def read(
    settings: DataSettings,
    names: Sequence[str] | None = None,
    advance: Advance = _nothing,
    layout_seen: LayoutSeen = _nothing,
) -> Iterator[Row | Problem]:
    """Yield every valid conversation of `names` (by default `settings.train`) as a Row, and every problem found.

    Problems come where they are found: those of a row before the row itself, which follows if they are all warnings.
    Memory does not grow with the files. `advance` is told of bytes read, `layout_seen` of each shape a file has.

    Raises:
        DataError: `settings.columns` do not fit `settings.format`.
    """
    reader = _Reader(Layouts(settings.format, settings.columns), settings.system, advance, layout_seen)
    for name in settings.train if names is None else names:
        yield from reader.read(name)


def size_in_bytes(names: Sequence[str]) -> int | None:
    """Return how many bytes `advance` will be told of, or None where `names` holds a data set of the Hub."""
    if any(name.startswith(PREFIX) for name in names):
        return None
    files = [file for name in names if isinstance(file := open_data_file(name), DataFile)]
    for file in files:
        file.stream.close()
    return sum(file.num_bytes for file in files)


def read_records(
    name: str, advance: Advance = _nothing, needed: NeededColumns = list
) -> Iterator[Header | Record | Problem]:
    """Yield every row of a file or a Hub data set as an object, whatever is in it, and every problem on the way.

    Of a Parquet file or a data set of the Hub, with the columns that `needed` chooses of all.
    """
    if name.startswith(PREFIX):
        yield from hub_rows(name, needed)
        return
    file = open_data_file(name)
    if isinstance(file, Problem):
        yield file
        return
    with file.stream:
        try:
            yield from _records(file, advance, needed)
        except OSError as error:
            message = f"cannot be read to its end: {error.strerror or error}"
            yield file_problem(Source(name), message, "unreadable-file")


def _records(file: DataFile, advance: Advance, needed: NeededColumns) -> Iterator[Header | Record | Problem]:
    if file.kind == "jsonl":
        return json_lines(file, advance)
    if file.kind == "json":
        return json_array(file, advance)
    if file.kind in ("csv", "tsv"):
        return csv_rows(file, advance)
    # Imported here: pyarrow takes a third of a second, and the other kinds need none of it.
    from .parquet_rows import parquet_rows

    return parquet_rows(file, advance, needed)


class _Reader:
    """Reads one name after the other with the same settings."""

    def __init__(self, layouts: Layouts, system: str | None, advance: Advance, layout_seen: LayoutSeen):
        self._layouts = layouts
        self._system = system
        self._advance = advance
        self._layout_seen = layout_seen

    def read(self, name: str) -> Iterator[Row | Problem]:
        def needed(columns: tuple[str, ...]) -> list[str]:
            return list(self._layouts.of(columns).columns.values())

        yield from self._rows(name, read_records(name, self._advance, needed))

    def _rows(self, name: str, records: Iterator[Header | Record | Problem]) -> Iterator[Row | Problem]:
        layouts = FileLayouts(self._layouts, lambda layout: self._layout_seen(name, layout))
        empty = True
        for record in records:
            if type(record) is Record:
                empty = False
                layout = layouts.of(tuple(record.value), record.source)
                if layout.shape == "messages" and not layout.flaws and "tools" not in layout.columns:
                    # Most rows of most files, and so worth a way that makes nothing but the row.
                    messages = record.value[layout.columns["messages"]]
                    if is_plain(messages):
                        yield self._made(messages, None, record.source)
                        continue
                yield from self._row(record, layout)
            elif type(record) is Header:
                # Here, as records of what is wanted alone do not show what nothing reads.
                if flaws := layouts.of(record.columns, record.source).flaws:
                    # Every row would say the same.
                    yield from (file_problem(record.source, flaw.message, flaw.kind) for flaw in flaws)
                    return
            elif type(record) is Problem:
                empty = empty and record.severity == "warning"
                yield record
        if empty:
            yield file_problem(Source(name), "has no rows", "no-rows")

    def _row(self, record: Record, layout: Layout) -> Iterator[Row | Problem]:
        value, source, _ = record
        if layout.flaws:
            messages, tools, flaws = [], None, list(layout.flaws)
        else:
            messages, tools, flaws = validate(convert(layout.shape, layout.columns, value))
        usable = True
        for flaw in flaws:
            is_first_error = usable and flaw.severity == "error"
            usable = usable and not is_first_error
            yield flaw.at(source, _raw(record) if is_first_error else "")
        if not usable:
            return
        yield self._made(messages, tools, source)

    def _made(self, messages: list[Message], tools: list[Any] | None, source: Source) -> Row:
        if self._system and messages[0]["role"] != "system":
            return Row([{"role": "system", "content": self._system}, *messages], tools, source, True)
        return Row(messages, tools, source)


def _raw(record: Record) -> str:
    """Return the record as it stood in the file, or as JSON where it came from a table."""
    if record.raw:
        return as_raw(record.raw)
    return orjson.dumps(record.value, default=str).decode() if nesting(record.value) <= MAX_DEPTH else ""
