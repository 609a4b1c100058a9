"""What a setting's type cannot say: the range of a number and the shape of a text, for `typing.Annotated`."""

import re
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `least` to `most`, both included, and, where given, above `above` and below `below`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: Any) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {_in_digits(limit)}" for words, limit in limits if limit is not None)


@dataclass(frozen=True)
class Pattern:
    """Texts that match `regex` as a whole; `meaning` says so in words."""

    regex: str
    meaning: str

    def __contains__(self, value: Any) -> bool:
        return re.fullmatch(self.regex, value, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.meaning


def _in_digits(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


POSITIVE = Range(least=1)
NOT_NEGATIVE = Range(least=0)
ABOVE_ZERO = Range(above=0)
SHARE = Range(least=0, most=1)
PROBABILITY = Range(above=0, most=1)
NOT_EMPTY = Pattern(r".*\S.*", "a text that is not empty")
Text = Annotated[str, NOT_EMPTY]

# Of one file of a saved model, as transformers itself would choose it.
MAX_SHARD_GB = 5.0
