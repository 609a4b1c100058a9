"""Whether two results are equal, by math-verify. Runs in a process of its own: see `verifier_process`."""

import logging
import re
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Number

# Numbers with what may be written around one: a name before it, a sign, marks of thousands, a percent sign.
_NAME = r"(?:[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?"
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_TIMES_TEN = r"(?:\s*(?:\\times|\\cdot|\*|×)\s*10\s*\^\s*(?:\{-?\d+\}|-?\d)|[eE][+-]?\d+)"
WHOLE = re.compile(rf"{_NAME}[-+−]?\s*(?:(?:{_DIGITS}){_TIMES_TEN}?|10\s*\^\s*(?:\{{-?\d+\}}|-?\d))\s*(?:\\?%)?")
FRACTION = re.compile(
    rf"{_NAME}[-+−]?\s*\d*\s*(?:\\[dt]?frac\s*(?:\{{\s*-?\d+\s*\}}|\d)\s*(?:\{{\s*\d+\s*\}}|\d)|\d+\s*/\s*\d+)"
)
WORDS = re.compile(r"[^\W\d_][^\W\d_]+(?:[ -][^\W\d_]+)*")
# One of several to choose from.
LETTER = re.compile(r"[A-Z]")
UNIT = re.compile(r"\d\s*(?:\\[,; ])*\s*(?:\\(?:text|mathrm|rm|textrm)\s*\{\s*([^{}]*?)\s*\}|([A-Za-zµ]+))\s*$")
TEXT = re.compile(r"\\(?:text|mathrm|textrm|textbf)\s*\{\s*([^{}]*?)\s*\}")
# Units by their short names, and words for them. Others are not compared.
UNITS = {
    **{name: name for name in ("mm", "cm", "dm", "m", "km", "mg", "g", "kg", "t", "ms", "s", "min", "h", "ml", "l")},
    **{"millimeter": "mm", "centimeter": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km"},
    **{"gram": "g", "kilogram": "kg", "second": "s", "sec": "s", "minute": "min", "hour": "h", "liter": "l"},
    **{"inch": "in", "inches": "in", "in": "in", "foot": "ft", "feet": "ft", "ft": "ft", "mile": "mi", "yard": "yd"},
}
_CONFIG = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True, malformed_operators=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
]


def warm_up() -> None:
    """Do what is slow the first time."""
    # It warns, at each call, that its time limits are off: they are signals, and this process has a better one.
    logging.disable(logging.CRITICAL)
    check({"expected": "\\frac{1}{2}", "given": "x^2 + 0.5"})


def check(request: dict[str, str]) -> bool:
    """Return whether the given result equals the expected one; see `maths.Maths`."""
    expected, given = request["expected"], request["given"]
    if WORDS.fullmatch(_without_text(expected)) or LETTER.fullmatch(_without_text(expected)):
        return _without_text(expected).casefold() == _without_text(given).casefold()
    known, found = _parse(expected), _parse(given)
    if len(found) < 2 or not known or _units_differ(expected, given):
        return False
    if len(known) == 2 and isinstance(known[0], Number) and not _is_plain(found[1], whole=bool(known[0].is_integer)):
        return False
    return verify(known, found, timeout_seconds=None)


def _parse(text: str) -> list:
    """Return the expression and its text without units, where text alone is a result that could be read; else less."""
    timeout: Any = None
    found = parse(
        f"\\boxed{{{text}}}", extraction_config=_CONFIG, extraction_mode="first_match", parsing_timeout=timeout
    )
    return found if len(found) == 2 else []


def _is_plain(text: str, whole: bool) -> bool:
    text = text.strip().strip("$").replace("\\!", "").replace("^\\circ", "").strip()
    return bool(WHOLE.fullmatch(text) or (not whole and FRACTION.fullmatch(text)))


def _without_text(text: str) -> str:
    bare = TEXT.sub(r"\1", text).strip()
    return bare[1:-1] if LETTER.fullmatch(bare[1:-1]) and bare[0] + bare[-1] == "()" else bare


def _units_differ(expected: str, given: str) -> bool:
    units = [_find_unit(text) for text in (expected, given)]
    return None not in units and units[0] != units[1]


def _find_unit(text: str) -> str | None:
    found = UNIT.search(text)
    if found is None:
        return None
    name = (found[1] or found[2] or "").strip().rstrip(".")
    return UNITS.get(name) or UNITS.get(name.lower().removesuffix("s"))
