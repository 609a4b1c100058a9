"""What the test Hub was sent, request by request, with the bytes that arrived: also of those that broke off."""

import re
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request; `num_bytes` of its body arrived, of `expected`."""

    method: str
    path: str
    expected: int = 0
    num_bytes: int = 0
    status: int | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def is_whole(self) -> bool:
        return self.num_bytes == self.expected


class Journal:
    """Every request since the start or the last `clear`."""

    def __init__(self) -> None:
        self._entries: list[Received] = []
        self._lock = threading.Lock()

    def open(self, method: str, path: str, expected: int) -> Received:
        entry = Received(method, path, expected)
        with self._lock:
            self._entries.append(entry)
        return entry

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def find(self, pattern: str) -> list[Received]:
        """Return the requests whose "METHOD /path" the pattern is found in."""
        with self._lock:
            return [entry for entry in self._entries if re.search(pattern, f"{entry.method} {entry.path}")]

    def parts(self) -> list[Received]:
        """Return what was sent of large files: whole objects and parts of them."""
        return self.find(r"^PUT /_lfs/")
