"""Rewards of answers that must be a known text: exactly, or as a pattern finds them."""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import regex

from ..errors import RecipeError, RewardError
from ..limits import ABOVE_ZERO
from .completion import Row, answer_of, read_column, read_text


@dataclass(frozen=True)
class Exact:
    """1 where the answer is the text of a column, or one of its texts where it is a list; else 0.

    Blank space counts as one blank and not at the ends, and Unicode's different spellings of a character as one.
    """

    column: str = "answer"
    ignore_case: bool = False

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class."""
        expected = read_column(row, self.column)
        texts = expected if isinstance(expected, list | tuple) else [expected]
        allowed = {self._plain(read_text({self.column: text}, self.column)) for text in texts}
        return float(self._plain(answer_of(completion, row)) in allowed)

    def _plain(self, text: str) -> str:
        plain = " ".join(unicodedata.normalize("NFC", text).split())
        return plain.casefold() if self.ignore_case else plain


@dataclass(frozen=True)
class Matches:
    """1 where the answer matches a regular expression, else 0.

    Without a `column` the whole answer must match. With one, the pattern is searched for, and the last match counts:
    its first group, or all of it where there is none, must be the text of that column, as `exact` compares. So
    `Total: (\\S+)` finds the total anywhere in a letter.
    """

    pattern: str
    column: str | None = None
    ignore_case: bool = False
    # A pattern can take exponential time on a text made for it.
    timeout_s: Annotated[float, ABOVE_ZERO] = 1.0

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True

    def __post_init__(self):
        try:
            _compile(self.pattern, self.ignore_case)
        except (regex.error, TypeError) as error:
            raise RecipeError(f"pattern is {self.pattern!r}, no regular expression: {error}") from None

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks the column, or the search took too long.
        """
        pattern, answer = _compile(self.pattern, self.ignore_case), answer_of(completion, row)
        try:
            if self.column is None:
                return float(pattern.fullmatch(answer, timeout=self.timeout_s) is not None)
            found = list(pattern.finditer(answer, timeout=self.timeout_s))
        except TimeoutError:
            raise RewardError(f"pattern {self.pattern!r} took longer than {self.timeout_s} s") from None
        exact = Exact(self.column, self.ignore_case)
        text = found[-1].group(1 if pattern.groups else 0) or "" if found else ""
        return exact(text, {self.column: row.get(self.column)})


@lru_cache(maxsize=64)
def _compile(pattern: str, ignore_case: bool) -> Any:
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
