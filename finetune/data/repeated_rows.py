"""Rows that come twice: exact and near-duplicates, and training data that is in the validation files too."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .duplicates import Places, RepeatFinder, Repeats
from .fingerprint import hashed, plain_contents, plain_conversation
from .near_duplicates import SIMILARITY, NearDuplicateFinder
from .problems import Problem, ProblemList, Severity
from .rows import Row, Source
from .split import split_key

# Without being asked, near-duplicates are looked for among this many rows: 2.4 s and 130 MB.
NEAR_ROWS = 200_000
_LINE_BITS = 40


class RepeatedRows:
    """Collects the rows of files, training files first, and then tells what came more than once.

    Near-duplicates are looked for among the first `NEAR_ROWS` rows; with `near` given among all, or none.
    """

    def __init__(self, names: Sequence[str], num_train: int, near: bool | None, severity: Severity):
        self._names = names
        self._severity: Severity = severity
        # Places from here on are of validation files.
        self._validation = num_train << _LINE_BITS if num_train < len(names) else None
        self._near_rows = {None: NEAR_ROWS, True: 1 << 62, False: 0}[near]
        self._rows = RepeatFinder()
        self._prompts = RepeatFinder()
        self._near = NearDuplicateFinder()
        # Of each file, whether its rows are told apart by their number in a JSON array.
        self._are_items = [False] * len(names)
        self.num_rows = 0

    @property
    def near_rows(self) -> int:
        """The number of rows among which near-duplicates were looked for."""
        return min(self.num_rows, self._near_rows)

    def add(self, row: Row, file: int) -> None:
        """Take note of a row of the file with this number."""
        place = file << _LINE_BITS | (row.source.item or row.source.line)
        self._are_items[file] = row.source.item > 0
        said = plain_conversation(row.messages)
        key = hashed(said)
        self._rows.add(key, place)
        if self._validation is not None:
            self._prompts.add(split_key(row.messages), place)
        if self.num_rows < self._near_rows:
            self._near.add(plain_contents(row.messages, said), place, key)
        self.num_rows += 1

    def tell(self, problems: ProblemList) -> None:
        """Add what came more than once to `problems`."""
        found = [
            _Kind("leak", "error", "is in the training data too: {}"),
            _Kind("duplicate", self._severity, "says the same as {}"),
            _Kind("leaked-prompt", "warning", "has the question of a training row, with another answer: {}"),
            _Kind(
                "near-leak", "warning", f"says nearly the same as training row {{}} ({SIMILARITY:.0%} alike or more)"
            ),
            _Kind("near-duplicate", "warning", f"says nearly the same as {{}} ({SIMILARITY:.0%} alike or more)"),
        ]
        leak, duplicate, prompt, near_leak, near = (_Gathered(problems.per_kind) for _ in found)
        leaked: list[Places] = [np.empty(0, np.uint64)]
        for repeats in self._rows.repeats():
            leaks, others = self._leaks(repeats)
            leaked.append(leaks.later)
            leak.add(leaks)
            duplicate.add(others)
        known = np.concatenate(leaked)
        for repeats in self._prompts.repeats():
            leaks, _ = self._leaks(repeats)
            prompt.add(_chosen(leaks, ~np.isin(leaks.later, known)))
        leaks, others = self._leaks(self._near.repeats())
        near_leak.add(leaks)
        near.add(others)
        for kind, gathered in zip(found, (leak, duplicate, prompt, near_leak, near), strict=True):
            first = self._problems(kind, gathered.first)
            problems.add_counted(kind.severity, kind.name, gathered.number, first)

    def _leaks(self, repeats: Repeats) -> tuple[Repeats, Repeats]:
        """Return the validation rows that are training rows too, and all other repeats."""
        if self._validation is None:
            return _chosen(repeats, np.zeros(len(repeats.later), bool)), repeats
        leaks = (repeats.first < self._validation) & (repeats.later >= self._validation)
        return Repeats(repeats.first[leaks], repeats.later[leaks]), Repeats(
            repeats.first[~leaks], repeats.later[~leaks]
        )

    def _problems(self, kind: "_Kind", repeats: Repeats) -> list[Problem]:
        places = zip(repeats.first, repeats.later, strict=True)
        return [
            Problem(self._source(later), "", kind.message.format(self._source(first)), kind.severity, kind.name)
            for first, later in places
        ]

    def _source(self, place: np.uint64) -> Source:
        file, number = int(place) >> _LINE_BITS, int(place) & ((1 << _LINE_BITS) - 1)
        return Source(self._names[file], *((0, number) if self._are_items[file] else (number, 0)))


class _Kind(NamedTuple):
    name: str
    severity: Severity
    message: str


class _Gathered:
    """How many repeats there are, and the first few by place."""

    def __init__(self, limit: int):
        self.number = 0
        self.first = Repeats(np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._limit = limit

    def add(self, repeats: Repeats) -> None:
        self.number += len(repeats.later)
        first = np.concatenate([self.first.first, repeats.first])
        later = np.concatenate([self.first.later, repeats.later])
        order = np.argsort(later)[: self._limit]
        self.first = Repeats(first[order], later[order])


def _chosen(repeats: Repeats, which: npt.NDArray[np.bool_]) -> Repeats:
    return Repeats(repeats.first[which], repeats.later[which])
