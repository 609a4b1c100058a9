"""Where a row holds secrets or personal data; fast enough to look at every row by default.

A text first passes a filter that reads it a few times at memory speed (`bytes.translate` and substring search). Only
the rules of what it may hold are then tried.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from .findings import Finding
from .personal_rules import find_codes, find_emails, find_numbers
from .rows import Row
from .secret_rules import find_long_secrets, find_passwords

# Keys and tokens, in runs of these characters, are never shorter than this.
_LONG = b"x" * 16
RUNS = bytes(ord("x") if (chr(i).isalnum() and i < 128) or chr(i) in "_-+/=.:~" else ord(" ") for i in range(256))
# Numbers that are looked for: nine digits or more when all that may part them is left out, or seven when points are.
# The date 2024-03-12 has eight digits and no points.
_NINE, _SEVEN = b"0" * 9, b"0" * 7
DIGITS = bytes(ord("0") if i in b"0123456789" else ord(" ") for i in range(256))
# The question mark stands for what Latin-1 lacks: dashes other than the plain one.
SEPARATORS = b" ()./-?\xa0"


# Parts of a message that no person wrote, and that must stay what they are.
NOT_WRITTEN = ("role", "type", "id", "tool_call_id")


class _Signs(NamedTuple):
    """What a text may hold; all empty or False for most."""

    runs: list[tuple[int, int]]
    emails: bool
    passwords: bool
    numbers: bool


def scan_text(text: str) -> list[Finding]:
    """Return the secrets and personal data in a text, in order, none overlapping another."""
    signs = _signs(text)
    found: list[Finding] = []
    if signs.runs:
        found += find_long_secrets(text, signs.runs)
        found += find_codes(text, signs.runs)
    if signs.emails:
        found += find_emails(text)
    if signs.passwords:
        found += find_passwords(text)
    if signs.numbers:
        found += find_numbers(text)
    return _without_overlaps(found) if found else found


def scan_row(row: Row) -> list[tuple[str, Finding]]:
    """Return what `scan_text` finds in a row's messages and tools, each with its field: `messages[2].content`."""
    if is_clean(row):
        return []
    return [(field, finding) for field, text in texts_of(row) for finding in scan_text(text)]


def is_clean(row: Row) -> bool:
    """Return whether a row holds nothing that `scan_row` would look at more closely, in one pass over all its texts."""
    return not any(_signs("\n".join([text for _, text in texts_of(row)])))


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """Yield every string that a person or a model wrote in a row, with its field; roles, types and ids are left out."""
    for i, message in enumerate(row.messages):
        for name, value in message.items():
            if isinstance(value, str):
                if name not in NOT_WRITTEN:
                    yield f"messages[{i}].{name}", value
            elif value:
                yield from _strings(f"messages[{i}].{name}", value)
    if row.tools:
        yield from _strings("tools", row.tools)


def _signs(text: str) -> _Signs:
    # One byte per character, so that positions are the same.
    data = text.encode("latin-1", "replace")
    marked = data.translate(RUNS)
    runs = _long_runs(marked) if _LONG in marked else []
    emails = b"@" in data
    lowered = data.lower()
    named = b"pass" in lowered or b"pwd" in lowered or b"kennwort" in lowered or b"contrase" in lowered
    digits = data.translate(DIGITS, SEPARATORS)
    numbers = _SEVEN in digits and (_NINE in digits or _SEVEN in data.translate(DIGITS, b"."))
    return _Signs(runs, emails, named or (emails and b"://" in data), numbers)


def _long_runs(marked: bytes) -> list[tuple[int, int]]:
    runs, end = [], 0
    while (start := marked.find(_LONG, end)) >= 0:
        end = marked.find(b" ", start)
        end = len(marked) if end < 0 else end
        runs.append((start, end))
    return runs


def _strings(field: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in NOT_WRITTEN:
                yield from _strings(f"{field}.{name}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _strings(f"{field}[{i}]", inner)


def _without_overlaps(found: list[Finding]) -> list[Finding]:
    """Return the findings in order; of two that overlap, the one that starts first, and of equal starts the longer."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: (f.start, -f.end)):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return kept
