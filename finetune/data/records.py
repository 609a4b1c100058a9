"""What every kind of file gives: one object a row, not yet known to be a conversation."""

from typing import Any, NamedTuple

from .rows import Source


class Record(NamedTuple):
    """One object, where it stands, and the bytes it was read from (empty where there are none, as in Parquet)."""

    value: dict[str, Any]
    source: Source
    raw: bytes = b""


class Header(NamedTuple):
    """The columns that every later record of this file has; comes before the first, from tables only."""

    columns: tuple[str, ...]
    source: Source
