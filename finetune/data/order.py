"""Which role may follow which in a conversation."""

from functools import lru_cache
from typing import NamedTuple

from .problems import Severity

# An assistant turn that calls tools, which only tool turns may answer.
CALL = "assistant with tool_calls"
# A turn that has no known role, which has been said already: it may stand anywhere, and anything may follow.
UNKNOWN = ""
# Bounds what is remembered to some 10 MB.
_MAX_REMEMBERED_TURNS = 256

_FIRST = ("system", "user")
_NEXT = {
    "system": ("user",),
    "user": ("assistant", CALL),
    "assistant": ("user",),
    CALL: ("tool",),
    "tool": ("tool", "assistant", CALL),
}


class Misplaced(NamedTuple):
    """A turn that may not stand where it does."""

    index: int
    message: str
    severity: Severity
    kind: str


def misplaced(turns: tuple[str, ...]) -> tuple[Misplaced, ...]:
    """Return every turn that may not stand where it does, of roles, `CALL` and `UNKNOWN` in order.

    Empty for a sound conversation. Most files have few orders, so each is looked at once.
    """
    return _remembered(turns) if len(turns) <= _MAX_REMEMBERED_TURNS else tuple(_misplaced(turns))


@lru_cache(4096)
def _remembered(turns: tuple[str, ...]) -> tuple[Misplaced, ...]:
    return tuple(_misplaced(turns))


def _misplaced(turns: tuple[str, ...]) -> list[Misplaced]:
    found: list[Misplaced] = []
    if not {"assistant", CALL, UNKNOWN} & set(turns):
        message = f"has no assistant turn to learn from, only: {', '.join(turns[:8])}"
        found.append(Misplaced(-1, message, "error", "no-assistant"))
    before: str | None = None
    for index, turn in enumerate(turns):
        allowed = _NEXT[before] if before else _FIRST
        if turn != UNKNOWN and before != UNKNOWN and turn not in allowed:
            place = f'after "{before}"' if before else "at the start"
            hint = "; join turns of one role into one" if turn == before else ""
            message = f'is "{turn}" {place}; allowed there: {", ".join(allowed)}{hint}'
            found.append(Misplaced(index, message, "error", "role-order"))
        before = turn
    if before not in ("assistant", UNKNOWN) and not found:
        message = f'is "{before}" and the last turn; what stands after the last assistant turn is not learned'
        found.append(Misplaced(len(turns) - 1, message, "warning", "ends-without-answer"))
    return found
