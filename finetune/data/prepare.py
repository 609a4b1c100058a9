"""From files to what a trainer takes: tokens with masks, split, packed, and a report of what became of every row."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .command import reading_progress
from .field_names import FieldNames
from .fingerprint import fingerprint
from .lines import Advance
from .pack import pack
from .prepare_report import PrepareReport
from .problems import Problem, Severity
from .read import read, size_in_bytes
from .redact import redact_row
from .rows import Row, Source
from .scan import scan_row
from .settings import DataSettings
from .side_file import SideFile, side_file
from .split import is_held_out
from .template import ChatTemplate, choose_template
from .token_columns import TokenColumns
from .tokenize_rows import RefusedRow, RowTokenizer, TokenRow, tokenize_rows

_JOINED = "has an answer whose blank space at the start is one token with the header before it; strip it"


@dataclass(frozen=True)
class Prepared:
    """Data as a trainer takes it.

    Both data sets have "input_ids" and "assistant_masks", TRL's names for what is tokenised already. With
    `data.packing` the training set also has "seq_lengths" (see `pack.Packed`). `validation_rows` are the conversations
    of `validation`, in its order.
    """

    train: Dataset
    validation: Dataset
    validation_rows: list[Row]
    template: ChatTemplate
    report: PrepareReport


def prepare(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    left_out: Path | None = None,
    *,
    show_progress: bool = False,
    num_processes: int | None = None,
    held_out_only: bool = False,
) -> Prepared:
    """Return the data of a recipe, read, checked, redacted, split, tokenised and packed as its settings say.

    Rows left out by choice go to `left_out` (JSON lines) with the reason. `show_progress` puts a bar on a terminal.
    With `held_out_only` no training row is tokenised, and the training set is empty. The same files and settings give
    the same data.

    Raises:
        DataError: there are errors, and `settings` do not say to go on without the rows that have them: names all of
            them, by file and line; or nothing is left to train on; or no chat template fits (see `choose_template`).
    """
    template = choose_template(tokenizer, settings.chat_template, settings.assistant_only)
    truncate = settings.on_long == "truncate"
    tokenize = RowTokenizer(tokenizer, template, settings.max_tokens, truncate, settings.assistant_only)
    names = (*settings.train, *(settings.validation if isinstance(settings.validation, tuple) else ()))
    bar = reading_progress(size_in_bytes(names)) if show_progress else nullcontext(lambda _: None)
    with side_file(left_out) as skipped, bar as advance:
        run = _Preparation(settings, tokenize, skipped, advance, num_processes, held_out_only)
        train, validation = run.gather()
    report = run.report
    report.side_file = left_out if skipped.num_rows else None
    if report.problems.count("error"):
        raise DataError(report.errors())
    if not held_out_only and not report.train.num_rows:
        raise DataError(f"no conversation is left to train on; {'; '.join(report.lines())}")
    train_set = train.dataset()
    if settings.packing and not held_out_only:
        train_set, report.packing_efficiency = pack(train_set, settings.max_tokens)
        report.packed_rows = len(train_set)
    return Prepared(train_set, validation.dataset(), run.validation_rows, template, report)


class _Preparation:
    """One pass over the files."""

    def __init__(
        self,
        settings: DataSettings,
        tokenize: RowTokenizer,
        side_file: SideFile,
        advance: Advance,
        num_processes: int | None,
        held_out_only: bool,
    ):
        self.report = PrepareReport(tokenize.template)
        self.validation_rows: list[Row] = []
        self._settings = settings
        self._tokenize = tokenize
        self._side_file = side_file
        self._advance = advance
        self._num_processes = num_processes
        self._held_out_only = held_out_only
        self._names = FieldNames()
        self._seen: dict[int, Source] = {}
        self._validation_seen: dict[int, Source] = {}

    def gather(self) -> tuple[TokenColumns, TokenColumns]:
        """Return the tokens of training and of validation."""
        train, validation = TokenColumns(), TokenColumns()
        share, files = 0.0, self._settings.validation
        if isinstance(files, tuple):
            # First, so that training rows can be compared with them.
            for row in self._token_rows(self._rows(files)):
                self._add_validation(row, validation)
            self._validation_seen, self._seen = self._seen, {}
        else:
            share = files
        rows = self._rows(self._settings.train)
        if self._held_out_only:
            rows = (row for row in rows if is_held_out(row.messages, share))
        for row in self._token_rows(rows):
            if is_held_out(row.row.messages, share):
                self._add_validation(row, validation)
            else:
                self.report.train.add(row)
                train.add(row)
        if share and not self.report.validation.num_rows:
            message = f"is {share}, and no row falls into that share; allowed: a larger one, or files"
            self._problem(Problem(Source("data.validation"), "", message, "warning", "nothing-held-out"))
        return train, validation

    def _add_validation(self, row: TokenRow, columns: TokenColumns) -> None:
        self.report.validation.add(row)
        columns.add(row)
        self.validation_rows.append(row.row)

    def _rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Yield the rows that are fit for tokenising."""
        for item in read(self._settings, names, self._advance, self._names.seen):
            if isinstance(item, Problem):
                self._read_problem(item)
            elif not self._is_repeated(item):
                yield self._scanned(item if self._settings.reasoning == "keep" else _without_reasoning(item))

    def _token_rows(self, rows: Iterator[Row]) -> Iterator[TokenRow]:
        for made in tokenize_rows(rows, self._tokenize, self._num_processes):
            if isinstance(made, TokenRow):
                self.report.truncated += made.truncated
                if made.joined:
                    self._problem(Problem(made.row.source, "", _JOINED, "warning", "answer-joins-header"))
                yield made
            else:
                self._refuse(made)

    def _problem(self, problem: Problem) -> None:
        self.report.problems.add(problem)

    def _skip(self, problem: Problem, row: Row | None = None) -> None:
        if self._side_file.add(problem, row):
            self.report.skipped[problem.kind] += 1

    def _read_problem(self, problem: Problem) -> None:
        if problem.severity == "error" and problem.scope == "row" and self._settings.on_bad_row == "skip":
            self._skip(problem)
        else:
            self._problem(problem)

    def _refuse(self, refused: RefusedRow) -> None:
        for problem in refused.problems:
            problem = problem._replace(field=self._names.of(refused.row, problem.field))
            choice = self._settings.on_bad_row
            if problem.kind == "too-long":
                choice = "error" if self._settings.on_long == "error" else "skip"
            if choice == "skip":
                self._skip(problem, refused.row)
            else:
                self._problem(problem)

    def _is_repeated(self, row: Row) -> bool:
        """Return whether a row is to be left out because of an earlier one, and note it if there is one."""
        key = fingerprint(row.messages)
        drop = self._settings.on_duplicate == "drop"
        if (first := self._validation_seen.get(key)) is not None:
            hint = "" if drop else "; data.on_duplicate: drop leaves it out of training"
            problem = Problem(row.source, "", f"is in the validation data too: {first}{hint}", "error", "leak")
        elif (first := self._seen.setdefault(key, row.source)) is row.source:
            return False
        else:
            severity: Severity = "error" if self._settings.on_duplicate == "error" else "warning"
            problem = Problem(row.source, "", f"says the same as {first}", severity, "duplicate")
        if drop:
            self._skip(problem, row)
        else:
            self._problem(problem)
        return drop

    def _scanned(self, row: Row) -> Row:
        """Return the row, redacted if that is the choice; else note secrets and personal data in it."""
        choice = self._settings.on_secret
        if choice == "redact":
            row, counts = redact_row(row)
            self.report.redacted += counts
        elif self._settings.scan:
            severity: Severity = "error" if choice == "error" else "warning"
            for name, finding in scan_row(row):
                field = self._names.of(row, name)
                self._problem(Problem(row.source, field, str(finding), severity, finding.kind))
        return row


def _without_reasoning(row: Row) -> Row:
    messages = [
        {key: value for key, value in message.items() if key != "reasoning_content"} for message in row.messages
    ]
    return row._replace(messages=messages)
