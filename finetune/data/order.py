"""Which role may follow which in a conversation."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from .problems import Severity
from .rows import ROLES

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
    return _remembered(turns) if len(turns) <= _MAX_REMEMBERED_TURNS else tuple(misplaced_as_named(turns, turns, {}))


@lru_cache(4096)
def is_sound(roles: tuple[str, ...]) -> bool:
    """Return whether these are known roles in a sound order, without tool calls; False for very many turns."""
    return len(roles) <= _MAX_REMEMBERED_TURNS and set(roles) <= set(ROLES) and not misplaced(roles)


@lru_cache(4096)
def _remembered(turns: tuple[str, ...]) -> tuple[Misplaced, ...]:
    return tuple(misplaced_as_named(turns, turns, {}))


def misplaced_as_named(turns: Sequence[str], named: Sequence[str], names: Mapping[str, str]) -> list[Misplaced]:
    """Return what `misplaced` does, in the words of a file: `named` is what it calls each turn, `names` our roles."""
    found: list[Misplaced] = []
    if not {"assistant", CALL, UNKNOWN} & set(turns):
        message = f"has no assistant turn to learn from, only: {', '.join(named[:8])}"
        found.append(Misplaced(-1, message, "error", "no-assistant"))
    before: str | None = None
    for index, turn in enumerate(turns):
        allowed = _NEXT[before] if before else _FIRST
        if turn != UNKNOWN and before != UNKNOWN and turn not in allowed:
            place = f'after "{named[index - 1]}"' if before else "at the start"
            hint = "; join turns of one role into one" if turn == before else ""
            wanted = ", ".join(names.get(role, role) for role in allowed)
            message = f'is "{named[index]}" {place}; allowed there: {wanted}{hint}'
            found.append(Misplaced(index, message, "error", "role-order"))
        before = turn
    if before not in ("assistant", UNKNOWN) and not found:
        message = f'is "{named[-1]}" and the last turn; what stands after the last assistant turn is not learned'
        found.append(Misplaced(len(turns) - 1, message, "warning", "ends-without-answer"))
    return found
