"""Rows that were left out of training, kept with the reason in a file beside the run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..atomic_files import replaced_file
from .problems import Problem
from .rows import Row, Source


class SideFile:
    """Writes a JSON line for each row left out: its file, line, reasons and the row itself.

    `row` is the text of the row as read, or the conversation where it could be read but not used; of a row too long to
    hold it is the start, and `num_bytes` the length of the whole. Without a stream nothing is written, for processes
    beside the one that writes.
    """

    def __init__(self, stream: TextIO | None):
        self.num_rows = 0
        self._stream = stream
        self._source: Source | None = None
        self._last: dict[str, Any] = {}

    def add(self, problem: Problem, row: Row | None = None) -> bool:
        """Note why a row is left out, and return whether it is a new row; further problems of one join the first."""
        reason = {"kind": problem.kind, "field": problem.field, "message": problem.message}
        if self._source == problem.source:
            self._last["reasons"].append(reason)
            return False
        self.flush()
        self.num_rows += 1
        self._source = problem.source
        file, line, item = problem.source
        self._last = {"file": file, "line": line} | ({"item": item} if item else {}) | {"reasons": [reason]}
        self._last["row"] = problem.raw or _conversation(row)
        if problem.num_bytes:
            self._last["num_bytes"] = problem.num_bytes
        return True

    def flush(self) -> None:
        """Write the last row, to which no further problem will come."""
        if self._last and self._stream is not None:
            # Unpaired surrogates have no UTF-8; as escapes they stay.
            text = json.dumps(self._last, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
            self._stream.write(text + "\n")
        self._last = {}


@contextmanager
def side_file(path: Path | None) -> Iterator[SideFile]:
    """Give the side file that replaces `path` when the block ends; there is none then if nothing was left out.

    Raises:
        OSError: it cannot be written.
    """
    if path is None:
        yield SideFile(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as beside, beside.open("w", encoding="utf-8") as stream:
        file = SideFile(stream)
        yield file
        file.flush()
    if not file.num_rows:
        path.unlink()


def _conversation(row: Row | None) -> dict | None:
    if row is None:
        return None
    return {"messages": row.messages} | ({"tools": row.tools} if row.tools else {})
