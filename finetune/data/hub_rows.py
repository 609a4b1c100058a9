"""Rows of a data set on the Hub, streamed."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..hub_reach import why_unreachable
from .problems import Problem, file_problem
from .records import Header, Record
from .rows import Source

PREFIX = "hub:"
_NAME = re.compile(
    r"hub:(?P<path>\w[\w.-]*/\w[\w.-]*)(?:/(?P<config>\w[\w.-]*))?(?:@(?P<revision>\w[\w./-]*))?(?::(?P<split>\w[\w.-]*))?",
    re.ASCII,
)
_GRAMMAR = "hub:owner/name[/config][@revision][:split]"


class HubName(NamedTuple):
    """The parts of `hub:owner/name[/config][@revision][:split]`."""

    path: str
    config: str | None
    revision: str | None
    split: str


def parse_hub_name(name: str) -> HubName | Problem:
    """Return the parts of `name`, with "train" for a split that is not named."""
    match = _NAME.fullmatch(name)
    if not match:
        return file_problem(Source(name), f"is not the name of a data set; allowed: {_GRAMMAR}", "bad-hub-name")
    return HubName(match["path"], match["config"], match["revision"], match["split"] or "train")


def hub_rows(name: str, needed: Callable[[tuple[str, ...]], list[str]]) -> Iterator[Header | Record | Problem]:
    """Yield the header where the Hub knows it, then a record for every row; lines are row numbers from 1.

    Of the columns in a header only those that `needed` chooses are read: others may be pictures or sound.
    """
    parts = parse_hub_name(name)
    if isinstance(parts, Problem):
        yield parts
        return
    if why := why_unreachable():
        yield file_problem(Source(name), f"cannot be read: {why}", "unreadable-dataset")
        return
    # Imported here: it takes a second, and files need none of it.
    import datasets
    from datasets.exceptions import DatasetsError

    row = 0
    try:
        rows = datasets.load_dataset(
            parts.path, parts.config, split=parts.split, revision=parts.revision, streaming=True
        )
        if rows.column_names:
            columns = tuple(rows.column_names)
            yield Header(columns, Source(name))
            rows = rows.select_columns(needed(columns))
        for value in rows:
            row += 1
            yield Record(value, Source(name, row))
    # Not found, no access, no network, a bad split or revision, and files that do not parse: all from what was named.
    # A column of sound or pictures that takes a package to decode is an ImportError.
    except (DatasetsError, OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        where = f"after row {row:,}" if row else "from the start"
        message = f"cannot be read {where}: {reason[:300]}"
        yield file_problem(Source(name), message, "unreadable-dataset")
