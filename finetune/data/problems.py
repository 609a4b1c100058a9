"""What is wrong with data: one problem by place and kind, and a list of many that stays short."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from .rows import Source
from .wording import printable

Severity = Literal["error", "warning"]
Scope = Literal["row", "file"]


class Problem(NamedTuple):
    """One thing wrong in one place.

    `field` names the part of the row as the file spells it (`messages[2].role`; empty for a whole line or file) and
    `message` goes on from there: the value, and what is allowed. `kind` is a short stable name, such as "bad-json".
    An error makes the row unusable; a warning leaves it in. An error of scope "file" is more than a bad row: it costs
    rows that nobody has seen, or puts in doubt where rows end, so that it cannot be skipped. `raw` is the row as read,
    for a side file of bad rows: given with the first error of a row, else empty. Where that is only the start of a row
    too long to hold, `num_bytes` is the length of the whole.
    """

    source: Source
    field: str
    message: str
    severity: Severity
    kind: str
    raw: str = ""
    scope: Scope = "row"
    num_bytes: int = 0

    def __str__(self) -> str:
        subject = f"{self.source}: {self.field}" if self.field else f"{self.source}:"
        return printable(f"{subject} {self.message}")


def file_problem(source: Source, message: str, kind: str, field: str = "") -> Problem:
    """Return the error `message`, which no row can be skipped for."""
    return Problem(source, field, message, "error", kind, scope="file")


class Flaw(NamedTuple):
    """A `Problem` of a row as long as its place is not known: what pure checks return."""

    field: str
    message: str
    kind: str
    severity: Severity = "error"

    def at(self, source: Source, raw: str = "") -> Problem:
        """The problem this is at `source`."""
        return Problem(source, self.field, self.message, self.severity, self.kind, raw)


class ProblemList:
    """Keeps the first `per_kind` problems of each kind and counts all of them."""

    def __init__(self, per_kind: int = 20):
        self.per_kind = per_kind
        # Kinds in the order they first came up.
        self.counts: Counter[tuple[Severity, str]] = Counter()
        self._kept: dict[tuple[Severity, str], list[Problem]] = {}

    def add(self, problem: Problem) -> None:
        """Count `problem`, and keep it if its kind is not full yet."""
        key = (problem.severity, problem.kind)
        self.counts[key] += 1
        kept = self._kept.setdefault(key, [])
        if len(kept) < self.per_kind:
            # The raw row may be megabytes, and only a side file wants it.
            kept.append(problem._replace(raw=""))

    def add_counted(self, severity: Severity, kind: str, number: int, first: Sequence[Problem]) -> None:
        """Add `number` problems of one kind, of which `first` are the first."""
        if number:
            self.counts[severity, kind] += number
            kept = self._kept.setdefault((severity, kind), [])
            kept += first[: self.per_kind - len(kept)]

    def count(self, severity: Severity) -> int:
        """Number of problems of this severity, kept or not."""
        return sum(number for (of, _), number in self.counts.items() if of == severity)

    def kinds(self) -> Iterator[tuple[Severity, str, int, list[Problem]]]:
        """Severity, kind, count and kept problems of each kind: errors first, then as they came up."""
        for key in sorted(self._kept, key=lambda key: key[0]):
            yield *key, self.counts[key], self._kept[key]
