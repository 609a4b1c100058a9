"""The reward against completions that say the same again and again."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..limits import POSITIVE
from .completion import TOKEN_IDS, Row


@dataclass(frozen=True)
class Repetition:
    """Minus the share of runs of `size` tokens that have been there before: 0 without any, towards −1 in a loop.

    The formula is that of "Demystifying Long Chain-of-Thought Reasoning" (appendix C.2). Runs are long by default:
    three tokens come twice in any working of a sum, twenty in a loop. Where a row has no tokens, words are counted.
    With a `size` of 2, `a a a a` has three runs, of which one is new: −2/3.
    """

    size: Annotated[int, POSITIVE] = 20

    lowest: ClassVar[float] = -1.0
    highest: ClassVar[float] = 0.0
    verifies: ClassVar[bool] = False

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class."""
        items = row[TOKEN_IDS] if row.get(TOKEN_IDS) is not None else completion.split()
        runs = [tuple(items[start : start + self.size]) for start in range(len(items) - self.size + 1)]
        return len(set(runs)) / len(runs) - 1.0 if runs else 0.0
