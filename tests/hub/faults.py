"""Things that go wrong on demand: an error, or a connection that breaks, for requests that match."""

import re
import threading
from dataclasses import dataclass, field

from .refusal import Dropped, Refusal


@dataclass
class Fault:
    """Lets `after` matching requests pass, then spoils `times` of them.

    `path` is searched for in "METHOD /path". Without a `status` the connection is closed unanswered, once `after_bytes`
    of the body are read.
    """

    path: str
    status: int | None = None
    message: str = "Internal Error - We're working hard to fix this as soon as possible!"
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    times: int = 1
    after_bytes: int | None = None
    # The request is carried out first: only its answer is lost.
    is_answer_lost: bool = False


class Faults:
    """The faults that are to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that meets this request, and count it."""
        with self._lock:
            for fault in self._faults:
                if not re.search(fault.path, f"{method} {path}"):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


def strike(fault: Fault) -> None:
    """Raise what the fault is."""
    if fault.status is None:
        raise Dropped
    raise Refusal(fault.status, fault.message, headers=fault.headers)
