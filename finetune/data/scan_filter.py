"""Which of many rows may hold secrets or personal data: one pass over all texts, so that clean rows cost little."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .rows import Row
from .scan import DIGITS, RUNS, SEPARATORS, texts_of

# Between rows; no row holds it: it is an error wherever it comes.
_END = "\0"
# Digits of numbers that are looked for, when all that may part them is left out.
_NUM_DIGITS = 7
# How words begin that come before a password.
_WORDS = (b"pass", b"pwd", b"kennwort", b"contrase")
_DIGITS_AND_ENDS = b"\0" + DIGITS[1:]
_BIT_OF_LOWER_CASE = np.uint8(0x20)

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]


def suspicious(rows: Sequence[Row]) -> list[int]:
    """Return the indices of those of `rows` in which `scan_row` may find something: all others are clean."""
    if not rows:
        return []
    data = _END.join([_text(row) for row in rows]).encode("latin-1", "replace")
    characters = np.frombuffer(data, dtype=np.uint8)
    runs = _runs(np.frombuffer(data.translate(RUNS), dtype=np.uint8) == ord("x"), 16)
    lowered = characters | _BIT_OF_LOWER_CASE
    found = [np.flatnonzero(characters == ord("@")), runs, *(_word(lowered, word) for word in _WORDS)]
    indices = np.searchsorted(np.flatnonzero(characters == 0), np.concatenate(found))
    # What may part digits is taken out, and with it positions are others.
    plain = np.frombuffer(data.translate(_DIGITS_AND_ENDS, SEPARATORS), dtype=np.uint8)
    digits = np.searchsorted(np.flatnonzero(plain == 0), _runs(plain == ord("0"), _NUM_DIGITS))
    return np.unique(np.concatenate([indices, digits])).tolist()


def _text(row: Row) -> str:
    if row.tools is None and max(map(len, row.messages)) == 2:
        return "\n".join([message["content"] for message in row.messages])
    return "\n".join([text for _, text in texts_of(row)])


def _runs(marked: npt.NDArray[np.bool_], length: int) -> Positions:
    """Return where `length` marks in a row start."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        marked = marked[: max(len(marked) - step, 0)] & marked[step:]
        reach += step
    return np.flatnonzero(marked)


def _word(lowered: Bytes, word: bytes) -> Positions:
    """Return where `word` stands."""
    # Two letters leave few places to look at one by one.
    found = np.flatnonzero((lowered[:-1] == word[0]) & (lowered[1:] == word[1]))
    found = found[found <= len(lowered) - len(word)]
    for index in range(2, len(word)):
        found = found[lowered[found + index] == word[index]]
    return found
