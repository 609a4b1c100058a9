"""Everything that is in the files and everything that is wrong with it, before any model is loaded."""

import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .counts import Counts
from .field_names import FieldNames
from .layouts import Layout
from .lines import Advance
from .problems import Flaw, ProblemList, Severity
from .read import read
from .repeated_rows import RepeatedRows
from .rows import Row, Source
from .scan import scan_row
from .scan_filter import suspicious
from .settings import DataSettings

if TYPE_CHECKING:
    # It imports transformers, which a check without a tokenizer has no use for.
    from .token_check import TokenCheck


# Rows looked at together: enough for a tokenizer's threads.
_BATCH_ROWS = 128


@dataclass
class FileReport:
    """One file: how many rows it has, how many of them have errors, and of what shapes they are."""

    name: str
    for_validation: bool
    rows: int = 0
    bad_rows: int = 0
    layouts: list[Layout] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        """The file's names for the columns of its shape, over all its rows."""
        return {ours: theirs for layout in self.layouts for ours, theirs in layout.columns.items()}

    @property
    def ignored(self) -> list[str]:
        """The file's columns that nothing reads."""
        return list(dict.fromkeys(name for layout in self.layouts for name in layout.ignored))


@dataclass
class CheckReport:
    """What `check_data` found."""

    files: list[FileReport]
    counts: Counts
    problems: ProblemList
    # Rows among which near-duplicates were looked for.
    near_rows: int
    # Whether secrets and personal data were looked for.
    scanned: bool
    tokens: "TokenCheck | None"
    seconds: float

    @property
    def num_errors(self) -> int:
        """Number of errors: with any, the data is not fit for training as it is."""
        return self.problems.count("error")

    @property
    def num_warnings(self) -> int:
        """Number of warnings."""
        return self.problems.count("warning")


def check_data(
    settings: DataSettings,
    tokens: "TokenCheck | None" = None,
    *,
    near_duplicates: bool | None = None,
    advance: Advance = lambda _: None,
    per_kind: int = 20,
) -> CheckReport:
    """Read all files of `settings`, and return what they hold and every problem with them.

    With `tokens`, lengths and special tokens are checked by a tokenizer. Near-duplicates are looked for among the first
    200,000 rows; with `near_duplicates` given among all, or none. Keeps the first `per_kind` problems of each kind.
    `advance` is told of bytes read.

    Raises:
        DataError: `settings.columns` do not fit `settings.format`.
    """
    check = _Check(settings, tokens, near_duplicates, per_kind)
    for file in range(len(check.files)):
        check.read(file, advance)
    return check.report()


class _Check:
    """Passes every row to everything that looks at rows."""

    def __init__(self, settings: DataSettings, tokens: "TokenCheck | None", near: bool | None, per_kind: int):
        validation = settings.validation if isinstance(settings.validation, tuple) else ()
        names = (*settings.train, *validation)
        self.files = [FileReport(name, index >= len(settings.train)) for index, name in enumerate(names)]
        # Problems are named as the file spells them, which the recipe's own system message would shift.
        self._settings = replace(settings, system=None)
        self._tokens = tokens
        self._problems = ProblemList(per_kind)
        self._names = FieldNames()
        self._counts = Counts()
        severity = "error" if settings.on_duplicate == "error" else "warning"
        self._repeated = RepeatedRows(names, len(settings.train), near, severity)
        self._secret_severity: Severity = "error" if settings.on_secret == "error" else "warning"
        self._started = time.perf_counter()

    def read(self, index: int, advance: Advance) -> None:
        """Read the file with this number."""
        file = self.files[index]
        bad = Source("")
        waiting: list[Row] = []

        def layout_seen(name: str, layout: Layout) -> None:
            file.layouts.append(layout)
            self._names.seen(name, layout)

        for item in read(self._settings, [file.name], advance, layout_seen):
            if isinstance(item, Row):
                waiting.append(item)
                if len(waiting) == _BATCH_ROWS:
                    self._look_at(waiting, index)
                    waiting = []
                continue
            self._problems.add(item)
            if item.severity == "error" and item.scope == "row" and item.source != bad:
                bad = item.source
                file.rows += 1
                file.bad_rows += 1
        self._look_at(waiting, index)

    def report(self) -> CheckReport:
        """Return what was found in all files."""
        self._repeated.tell(self._problems)
        seconds = time.perf_counter() - self._started
        near = self._repeated.near_rows
        return CheckReport(self.files, self._counts, self._problems, near, self._settings.scan, self._tokens, seconds)

    def _look_at(self, rows: list[Row], index: int) -> None:
        """Look at sound rows of the file with this number."""
        file = self.files[index]
        file.rows += len(rows)
        for row in rows:
            self._counts.add(row)
            self._repeated.add(row, index)
        found: defaultdict[int, list[Flaw]] = defaultdict(list)
        if self._settings.scan:
            for number in suspicious(rows):
                for name, finding in scan_row(rows[number]):
                    found[number].append(Flaw(name, str(finding), finding.kind, self._secret_severity))
        if self._tokens and rows:
            stats = self._tokens.validation if file.for_validation else self._tokens.training
            for number, flaws in enumerate(self._tokens.check(rows, stats)):
                if flaws:
                    found[number] += flaws
        for number, flaws in sorted(found.items()):
            row = rows[number]
            file.bad_rows += any(flaw.severity == "error" for flaw in flaws)
            for flaw in flaws:
                self._problems.add(flaw._replace(field=self._names.of(row, flaw.field)).at(row.source))
