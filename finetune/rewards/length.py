"""The reward against completions that run into the limit of tokens."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..errors import RecipeError
from ..limits import POSITIVE
from .completion import TOKEN_IDS, Row, read_column


@dataclass(frozen=True)
class Overlong:
    """0 for a completion of few enough tokens, falling to −1 at the limit: DAPO's soft over-long punishment (eq. 13).

    With `max_tokens` 100 and `buffer_tokens` 20: 0 up to 80 tokens, −0.5 at 90, −1 from 100 on.
    """

    max_tokens: Annotated[int, POSITIVE]
    buffer_tokens: Annotated[int, POSITIVE]

    lowest: ClassVar[float] = -1.0
    highest: ClassVar[float] = 0.0
    verifies: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 < self.buffer_tokens <= self.max_tokens:
            raise RecipeError(
                f"buffer_tokens is {self.buffer_tokens} and max_tokens {self.max_tokens}; "
                "allowed: 0 < buffer_tokens <= max_tokens"
            )

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row has no tokens of the completion.
        """
        excess = len(read_column(row, TOKEN_IDS)) - (self.max_tokens - self.buffer_tokens)
        return -min(max(excess / self.buffer_tokens, 0.0), 1.0)
