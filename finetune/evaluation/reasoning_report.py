"""Evaluations of reasoning written down: of one model, and of the stages of a training beside each other."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..atomic_files import replaced_file, write_text
from ..figures import DPI
from .markdown import cell, literal, quote, table
from .measures import CONFIDENCE, Estimate
from .reasoning_plot import draw_stages
from .reasoning_results import ProblemResult, ReasoningReport, as_json, change

JSON, MARKDOWN, PLOT = "reasoning.json", "reasoning.md", "reasoning.png"
STAGES_JSON, STAGES_MARKDOWN, STAGES_PLOT = "stages.json", "stages.md", "stages.png"
CHANGE = "change"
LABELS = {
    "tokens": "mean length (tokens)",
    "well_formed": "well-formed (%)",
    "reasoned": "with reasoning (%)",
    "cut_off": "cut off (%)",
    "not_scored": "not scored (%)",
}


def label_of(figure: str) -> str:
    """Return what tables call a figure."""
    return LABELS.get(figure, f"{figure} (%)")


def write_reasoning_report(report: ReasoningReport, folder: Path) -> None:
    """Write JSON, Markdown and a figure into the folder, which is made if need be; each whole or not at all.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(folder / PLOT) as beside:
        draw_stages([report]).savefig(beside, dpi=DPI)
    write_text(folder / MARKDOWN, as_markdown(report))
    write_text(folder / JSON, json.dumps(as_json(report), indent=2, ensure_ascii=False) + "\n")


def write_stages(reports: Sequence[ReasoningReport], folder: Path) -> None:
    """Write stages beside each other as JSON, Markdown and a figure.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(folder / STAGES_PLOT) as beside:
        draw_stages(reports).savefig(beside, dpi=DPI)
    columns, rows = stage_rows(reports)
    sections = [
        "# Reasoning by stage",
        table(columns, [[cell(name), *figures] for name, *figures in rows]),
        f"![Figures by stage]({STAGES_PLOT})",
        _explanation(reports[-1]),
    ]
    write_text(folder / STAGES_MARKDOWN, "\n\n".join(sections) + "\n")
    stages = [{**as_json(report), "change of pass@1": _asdict(change(reports, i))} for i, report in enumerate(reports)]
    write_text(folder / STAGES_JSON, json.dumps(stages, indent=2, ensure_ascii=False) + "\n")


def as_markdown(report: ReasoningReport) -> str:
    """Return the content of `reasoning.md`."""
    sections = [
        "# Evaluation of reasoning",
        f"{literal(report.name)}: {report.num_samples:,} attempts at each of {report.num_problems:,} problems.",
        table(("figure", "value", "95 % interval"), [_cells(*each) for each in report.figures.items()]),
        f"![Figures]({PLOT})",
        _explanation(report),
    ]
    if report.by_difficulty:
        names = [name for name in report.figures if name.startswith(("pass@", "maj@")) or name == "tokens"]
        rows = [
            (cell(label), f"{number:,}", *(show(figures[name], name) for name in names))
            for label, (number, figures) in report.by_difficulty.items()
        ]
        head = (literal(str(report.settings.get("difficulty"))), "problems", *map(label_of, names))
        sections += ["## By difficulty", table(head, rows)]
    shown = report.results[: report.settings.get("num_shown", 0)]
    if shown:
        sections += ["## Attempts", *(_shown(result) for result in shown)]
    return "\n\n".join(sections) + "\n"


def summary_table(reports: Sequence[ReasoningReport]) -> Table:
    """Return stages beside each other as a table for the terminal, or the figures of one; a column for each stage.

    To be narrow enough, it has intervals of pass@1 and its changes only.
    """
    (_, *names), rows = stage_rows(reports)
    result = Table("", title="Reasoning", title_justify="left")
    for name, *_ in rows:
        result.add_column(name, justify="right", overflow="fold")
    for name, *cells in zip(names, *(figures for _, *figures in rows), strict=True):
        values, intervals = zip(*(text.partition(" ")[::2] for text in cells), strict=True)
        result.add_row(name, *values)
        if name in (label_of("pass@1"), CHANGE):
            result.add_row(f"  {CONFIDENCE:.0%} interval", *(text.strip("()") for text in intervals), style="dim")
    return result


def stage_rows(reports: Sequence[ReasoningReport]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of stages; changes are from the one before, where problems are the same.

    Figures that not all stages have are left out.
    """
    names = [name for name in reports[0].figures if all(name in report.figures for report in reports)]
    # What is nought in all stages is not worth a column.
    quiet = ("cut_off", "not_scored")
    names = [name for name in names if name not in quiet or any(report.figures[name].value for report in reports)]
    columns = ["stage", *map(label_of, names)]
    several = len(reports) > 1
    if several:
        columns.insert(2, CHANGE)
    rows = []
    for index, report in enumerate(reports):
        row = [report.name, *(show(report.figures[name], name) for name in names)]
        if several:
            difference = change(reports, index)
            row.insert(2, "" if difference is None else show(difference, CHANGE))
        rows.append(row)
    return columns, rows


def show(estimate: Estimate, name: str) -> str:
    """Return a figure with its interval: 71.4 (67.0–75.5), and a change with its sign."""
    sign = "+" if name == CHANGE else ""
    return f"{estimate.value:{sign}.1f} ({estimate.low:{sign}.1f}…{estimate.high:{sign}.1f})"


def _cells(name: str, estimate: Estimate) -> tuple[str, str, str]:
    return label_of(name), f"{estimate.value:.1f}", f"{estimate.low:.1f} … {estimate.high:.1f}"


def _explanation(report: ReasoningReport) -> str:
    settings = report.settings
    return (
        f"Sampled at temperature {settings.get('temperature')} and top-p {settings.get('top_p')}, "
        f"{report.num_samples} attempts a problem. pass@1 is the share of right attempts, averaged over problems; "
        "pass@k the unbiased estimate that one of k is right (arXiv 2107.03374); maj@k the share of problems whose "
        f"commonest answer among k is right. With {CONFIDENCE:.0%} intervals by the bootstrap of problems; one without "
        "width means that all problems gave the same figure, not that others would."
    )


def _shown(result: ProblemResult) -> str:
    said = "\n".join(str(message["content"]) for message in result.messages if message["role"] == "user")
    verdict = "right" if result.example["is_right"] else "wrong"
    title = f"**{literal(result.source)}**, first attempt ({result.example['num_tokens']} tokens, {verdict}):"
    return "\n\n".join((title, quote(said), quote(result.example["text"]) or "> (nothing)"))


def _asdict(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else asdict(estimate)
