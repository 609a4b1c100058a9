"""Words for messages about data: values shown safely and briefly, and the nearest name that is allowed."""

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any

# Enough to recognise a value by, short enough for one line.
_SHOWN_CHARACTERS = 60

# What other tools call the four roles.
_ROLE_NAMES = {
    "human": "user",
    "customer": "user",
    "client": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "developer": "system",
    "instructions": "system",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}


def printable(text: str) -> str:
    """Return `text` with everything unprintable escaped.

    Data is not to be trusted: an escape sequence in it must not reach the terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def quoted(text: str) -> str:
    """Return `text` in quotes, cut to 60 characters, with everything unprintable escaped."""
    shown = printable(text[:_SHOWN_CHARACTERS])
    mark = "'" if '"' in shown else '"'
    return f"{mark}{shown}{'…' if len(text) > _SHOWN_CHARACTERS else ''}{mark}"


def described(value: Any) -> str:
    """Return `value` and its type in a few words, as JSON would call them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (int, float)):
        number = repr(value)
        return f"{number[:_SHOWN_CHARACTERS]} (a number)"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with {listed(value)}" if value else "an empty object"
    if isinstance(value, bytes):
        return f"binary data of {len(value):,} bytes"
    return f"a {type(value).__name__}"


def listed(names: Iterable[Any]) -> str:
    """Return up to eight names, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(quoted(str(name)) for name in names[:8])
    return f"{shown} and {len(names) - 8:,} more" if len(names) > 8 else shown


def nearest(name: Any, allowed: Iterable[str]) -> str:
    """Return `; did you mean "user"?` for a `name` close to one allowed, or a known other word for it; else nothing."""
    if not isinstance(name, str):
        return ""
    allowed = list(allowed)
    plain = name.strip().lower()
    known = _ROLE_NAMES.get(plain)
    close = known if known in allowed else similar(plain, allowed)
    return f'; did you mean "{close}"?' if close else ""


def similar(name: str, allowed: Iterable[str]) -> str:
    """Return the one of `allowed` that is spelled most like `name`, or nothing.

    Looks at names of ordinary length only, and at the first hundred: comparing takes the square of the length.
    """
    if len(name) > _SHOWN_CHARACTERS:
        return ""
    short = (other for other in allowed if len(other) <= _SHOWN_CHARACTERS)
    return next(iter(difflib.get_close_matches(name, islice(short, 100), n=1)), "")
