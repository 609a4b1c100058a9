"""What a check found, for the terminal and as JSON."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .check import CheckReport, FileReport
from .counts import Histogram
from .rows import ROLES
from .wording import printable, quoted

if TYPE_CHECKING:
    # It imports matplotlib and transformers, which a report without a tokenizer has no use for.
    from .stats import TokenStats


def print_report(report: CheckReport, console: Console) -> None:
    """Print problems by kind, a table of what the files hold, and the verdict."""
    for severity, kind, number, problems in report.problems.kinds():
        colour = "red" if severity == "error" else "yellow"
        heading = Text.assemble((severity, f"bold {colour}"), f" {kind} ({number:,})")
        console.print(heading)
        for problem in problems:
            # Text, so that brackets in data are not taken for markup; not wrapped, so that it can be searched.
            console.print(Text(f"  {problem}"), soft_wrap=True)
        if number > len(problems):
            console.print(Text(f"  … and {number - len(problems):,} more"))
    if any(file.rows for file in report.files):
        console.print(_files_table(report))
        console.print(_counts_table(report))
    for note in notes(report):
        console.print(Text(note), style="dim", soft_wrap=True)
    console.print(verdict(report), soft_wrap=True)


def notes(report: CheckReport) -> list[str]:
    """Return what was not looked at, and why."""
    found: list[str] = []
    if report.near_rows < report.counts.rows:
        where = f"among the first {report.near_rows:,} rows only" if report.near_rows else "nowhere"
        found.append(f"Near-duplicates were looked for {where}; --near-duplicates looks at all rows.")
    if not report.scanned:
        found.append("Secrets and personal data were not looked for (--no-scan).")
    if report.tokens is None:
        found.append("Lengths in tokens and special tokens were not checked; --tokenizer PATH does.")
    else:
        found.append(f"Tokens are counted as the chat template {report.tokens.template.name} writes the rows.")
    return found


def verdict(report: CheckReport) -> Text:
    """Return the last line: whether this can be trained on."""
    rows, bad = sum(file.rows for file in report.files), sum(file.bad_rows for file in report.files)
    speed = f"{_number(rows, 'row')} read in {report.seconds:.1f} s ({rows / max(report.seconds, 1e-9):,.0f} rows/s): "
    found = f"{_number(report.num_errors, 'error')}, {_number(report.num_warnings, 'warning')}"
    if report.num_errors:
        return Text.assemble(speed, (found, "bold red"), f"; {_number(bad, 'row')} with errors; not fit for training")
    return Text.assemble(speed, (found, "bold green"), "; fit for training")


def as_json(report: CheckReport) -> dict[str, Any]:
    """Return the report as plain objects."""
    return {
        "fit_for_training": not report.num_errors,
        "num_errors": report.num_errors,
        "num_warnings": report.num_warnings,
        "files": [_file_as_json(file) for file in report.files],
        "rows": sum(file.rows for file in report.files),
        "bad_rows": sum(file.bad_rows for file in report.files),
        "turns": _as_json(report.counts.turns),
        "roles": dict(report.counts.roles),
        "characters": _as_json(report.counts.characters),
        "rows_with_tools": report.counts.with_tools,
        "rows_with_reasoning": report.counts.with_reasoning,
        "tokens": report.tokens
        and {"training": report.tokens.training.as_dict(), "validation": report.tokens.validation.as_dict()},
        "near_duplicates_among": report.near_rows,
        "scanned": report.scanned,
        "seconds": round(report.seconds, 3),
        "problems": [
            {
                "severity": severity,
                "kind": kind,
                "count": number,
                "shown": [
                    {"file": p.source.file, "line": p.source.line, "field": p.field, "message": printable(p.message)}
                    for p in problems
                ],
            }
            for severity, kind, number, problems in report.problems.kinds()
        ],
    }


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _files_table(report: CheckReport) -> Table:
    table = Table(title="Files", title_justify="left", title_style="bold")
    for name in ("file", "used for", "shape", "columns", "not read"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    table.add_column("with errors", justify="right")
    for file in report.files:
        table.add_row(
            Text(printable(file.name)),
            "validation" if file.for_validation else "training",
            file.layouts[0].shape if file.layouts else "",
            Text(_short(list(file.columns.values()))),
            Text(_short(file.ignored)),
            f"{file.rows:,}",
            f"{file.bad_rows:,}",
        )
    return table


def _short(names: list[str]) -> str:
    shown = ", ".join(quoted(name)[1:-1] for name in names[:6])
    return f"{shown}, …" if len(names) > 6 else shown


def _counts_table(report: CheckReport) -> Table:
    counts = report.counts
    table = Table(title="Rows that could be read", title_justify="left", title_style="bold")
    for name in ("", "in all", "mean", "median", "95 %", "most"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(*_measured("turns a row", counts.turns))
    table.add_row(*_measured("characters a row", counts.characters))
    if report.tokens:
        _add_tokens(table, "", report.tokens.training)
        _add_tokens(table, "validation: ", report.tokens.validation)
    for role in ROLES:
        if counts.roles[role]:
            table.add_row(f"{role} turns", f"{counts.roles[role]:,}", "", "", "", "")
    for name, number in (("rows with tools", counts.with_tools), ("rows with reasoning", counts.with_reasoning)):
        if number:
            table.add_row(name, f"{number:,}", "", "", "", "")
    return table


def _add_tokens(table: Table, prefix: str, stats: "TokenStats") -> None:
    if stats.num_rows:
        table.add_row(*_measured(f"{prefix}tokens a row", stats.tokens))
        table.add_row(*_measured(f"{prefix}trained tokens a row", stats.trained))
        table.add_row(*_measured(f"{prefix}trained tokens, % of a row", stats.trained_percent, in_all=False))


def _measured(name: str, histogram: Histogram, in_all: bool = True) -> tuple[str, ...]:
    total = f"{histogram.total:,}" if in_all else ""
    percentiles = (f"{histogram.percentile(percent):,}" for percent in (50, 95))
    return (name, total, f"{histogram.mean:,.1f}", *percentiles, f"{histogram.maximum:,}")


def _as_json(histogram: Histogram) -> dict[str, Any]:
    percentiles = {f"p{percent}": histogram.percentile(percent) for percent in (5, 25, 50, 75, 95, 99)}
    return {"total": histogram.total, "mean": histogram.mean, "max": histogram.maximum, **percentiles}


def _file_as_json(file: FileReport) -> dict[str, Any]:
    return {
        "name": file.name,
        "for_validation": file.for_validation,
        "rows": file.rows,
        "bad_rows": file.bad_rows,
        "shape": file.layouts[0].shape if file.layouts else None,
        "columns": file.columns,
        "ignored_columns": file.ignored,
    }
