"""The reward of a completion's form: reasoning between its tags, then an answer."""

from dataclasses import dataclass
from typing import ClassVar

from ..reasoning import is_well_formed, parse
from .completion import OPENED, Row


@dataclass(frozen=True)
class Format:
    """1 for `<think>…</think>` once each and at the start, then an answer that is not blank; else 0.

    Where the prompt ends in `<think>`, the completion must not open it again. Blank reasoning counts as well-formed,
    as of a model that chose not to think, unless `think` says that there must be some.
    """

    think: bool = False

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = False

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class."""
        opened = bool(row.get(OPENED))
        formed = is_well_formed(completion, opened)
        return float(formed and (not self.think or bool(parse(completion, opened).reasoning)))
