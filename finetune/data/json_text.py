"""One JSON text to one object, strictly, or the exact reason why not."""

import json
import re
from typing import Any

import orjson

from .problems import Problem
from .rows import Source
from .wording import described, listed, quoted

# Chat rows need about 5 levels and the JSON schemas of tools about 10; Python's own limits begin at some 300.
MAX_DEPTH = 64
_CONTAINERS = (dict, list)


def parse_object(raw: bytes, source: Source, *, complete: bool = True) -> dict[str, Any] | Problem:
    """Return the JSON object in `raw`, or the problem with it.

    Stricter than the standard library's reader, which takes NaN, half surrogates and a key given twice. `complete` is
    False where the file ended inside the line.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _unreadable(raw, source, error, complete)
    if type(value) is not dict:
        message = f'is {described(value)}; allowed: an object such as {{"messages": […]}}'
        return Problem(source, "row", message, "error", "wrong-type", as_raw(raw))
    if _is_plain(value, raw):
        return value
    num_keys, depth = _size(value)
    if depth > MAX_DEPTH:
        return _too_deep(raw, source)
    # A key is a quote before a colon. Counting those costs a tenth of reading key by key, and a miscount only time.
    num_written = raw.count(b'":')
    if b"\\" in raw:
        num_written -= raw.count(b'\\":')
    if num_keys != num_written and (repeated := _repeated_keys(raw)):
        message = f"gives {listed(repeated)} more than once in one object; only the last would count"
        return Problem(source, "", message, "error", "duplicate-key", as_raw(raw))
    return value


def _is_plain(value: dict[str, Any], raw: bytes) -> bool:
    """Return whether `value` holds a list of objects and no other objects or lists, only texts, and no key comes twice.

    Most chat rows are such. A text is two quotes in `raw`, so that a key given twice shows in their number; counting
    takes half the time of going through all of `value`.
    """
    num_texts = 2 * len(value) - 1
    num_objects = 0
    for inner in value.values():
        if type(inner) is list:
            num_objects += len(inner)
            for item in inner:
                if type(item) is not dict:
                    return False
                for text in item.values():
                    if type(text) is not str:
                        return False
                num_texts += 2 * len(item)
        elif type(inner) is not str:
            return False
    if raw.count(b"{") + raw.count(b"[") != num_objects + 2:
        return False
    num_quotes = raw.count(b'"')
    if b"\\" in raw:
        num_quotes -= raw.count(b'\\"')
    return num_quotes == 2 * num_texts


def as_raw(raw: bytes) -> str:
    """Return `raw` as text; `encode("utf-8", "surrogateescape")` gives the same bytes again, valid UTF-8 or not."""
    return raw.decode("utf-8", "surrogateescape")


def invalid_utf8(raw: bytes, source: Source) -> Problem | None:
    """Return the problem with the first byte of `raw` that is not UTF-8, or None where all are."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        near = quoted(raw[max(0, error.start - 12) : error.start + 12].decode("cp1252", "replace"))
        message = f"byte 0x{byte:02X} at byte {error.start + 1} is not UTF-8; read as Windows-1252 it is {near}"
        return Problem(source, "", message, "error", "invalid-utf8", as_raw(raw))
    return None


def nesting(value: Any) -> int:
    """Return the levels of objects and lists in `value`: 0 for a text or number."""
    return _size([value])[1] - 1


def _size(value: Any) -> tuple[int, int]:
    """Return number of keys in all objects of `value`, and the number of levels; without recursion."""
    num_keys = depth = 0
    level = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                num_keys += len(container)
                container = container.values()
            below += [item for item in container if type(item) in _CONTAINERS]
        level = below
    return num_keys, depth


def _repeated_keys(raw: bytes) -> list[str]:
    repeated: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        seen = {key for key, _ in pairs}
        if len(seen) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(sorted(key for key in seen if keys.count(key) > 1))

    # parse_int: int() refuses more than 4,300 digits.
    json.loads(raw, object_pairs_hook=check, parse_int=float)
    return repeated


def _too_deep(raw: bytes, source: Source) -> Problem:
    message = f"is nested too deeply; allowed: {MAX_DEPTH} levels of brackets"
    return Problem(source, "", message, "error", "too-deep", as_raw(raw))


def _unreadable(raw: bytes, source: Source, error: orjson.JSONDecodeError, complete: bool) -> Problem:
    """Return why `raw` is not JSON: the causes that come up again and again by name, the rest as the parser says it."""
    if problem := invalid_utf8(raw, source):
        return problem
    if raw.startswith(b"\xef\xbb\xbf"):
        kind, message = "bom", "starts with a byte order mark in mid-file; were several files joined? remove it"
    elif b"\0" in raw:
        kind, message = "nul-byte", f"holds a NUL byte at byte {raw.index(0) + 1}; allowed: text in UTF-8"
    elif "depth" in error.msg:
        return _too_deep(raw, source)
    elif not complete and error.pos >= len(raw.decode().rstrip()):
        kind, message = "truncated", f"the file ends in the middle of this row, after {quoted(raw.decode()[-40:])}"
    else:
        text = raw.decode()
        near = quoted(text[max(0, error.pos - 10) : error.pos + 20])
        kind, message = "bad-json", f"not JSON: {error.msg} at column {error.pos + 1}, near {near}{_hint(text, error)}"
    return Problem(source, "", message, "error", kind, as_raw(raw))


def _hint(text: str, error: orjson.JSONDecodeError) -> str:
    rest = text[error.pos :]
    if rest.startswith("'"):
        return "; strings need double quotes (Python: json.dumps, not str)"
    if re.match(r"-?(NaN|Infinity)\b", rest):
        return "; NaN and Infinity are not JSON: use null"
    if re.match(r"(True|False|None)\b", rest):
        return "; JSON writes true, false, null"
    if re.match(r"\s*[{\[]", rest) and "after document" in error.msg:
        return "; one row a line is allowed"
    if text.strip() in ("{", "["):
        return "; one row must stand on one line (an array over many lines belongs in a .json file)"
    return ""
