"""Rows that were left out of training, kept with the reason in a file beside the run."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from .problems import Problem
from .rows import Row, Source


class SideFile:
    """Writes a JSON line for each row left out: its file, line, reasons and the row itself.

    `row` is the text of the row as read, or the conversation where it could be read but not used; of a row too long to
    hold it is the start, and `num_bytes` the length of the whole. The file is replaced, and there is none where nothing
    was left out. Without a path nothing is written, for processes beside the one that writes.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.num_rows = 0
        self._source: Source | None = None
        self._last: dict[str, Any] = {}

    def __enter__(self) -> "SideFile":
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        if self.path is not None:
            self._stream.close()
            if self.num_rows == 0:
                self.path.unlink()

    def add(self, problem: Problem, row: Row | None = None) -> bool:
        """Note why a row is left out, and return whether it is a new row; further problems of one join the first."""
        reason = {"kind": problem.kind, "field": problem.field, "message": problem.message}
        if self._source == problem.source:
            self._last["reasons"].append(reason)
            return False
        self._flush()
        self.num_rows += 1
        self._source = problem.source
        file, line, item = problem.source
        self._last = {"file": file, "line": line} | ({"item": item} if item else {}) | {"reasons": [reason]}
        self._last["row"] = problem.raw or _conversation(row)
        if problem.num_bytes:
            self._last["num_bytes"] = problem.num_bytes
        return True

    def _flush(self) -> None:
        if self._last and self.path is not None:
            # Unpaired surrogates have no UTF-8; as escapes they stay.
            text = json.dumps(self._last, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
            self._stream.write(text + "\n")
        self._last = {}


def _conversation(row: Row | None) -> dict | None:
    if row is None:
        return None
    return {"messages": row.messages} | ({"tools": row.tools} if row.tools else {})
