"""What a rollout gave, written down: how many of what were left out for which reason, and how hard the prompts were."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from ..atomic_files import replaced_file, write_text
from ..attempts import Attempt
from ..evaluation.markdown import cell, table
from ..figures import COLOURS, DPI
from .admission import REASONS
from .filters import OBJECTIONS

JSON, MARKDOWN, PLOT = "report.json", "report.md", "report.png"
DIFFICULTIES = ("never", "≤ 25 %", "≤ 50 %", "≤ 75 %", "< 100 %", "always")
# Of prompts that overlap with evaluation sets, as many are named.
SHOWN_OVERLAPS = 20


@dataclass
class RolloutReport:
    """Counts of prompts and attempts; every one that was read or made is in exactly one of them."""

    num_prompts: int = 0
    """Rows read."""
    prompts_left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    num_attempts: int = 0
    num_right: int = 0
    """Attempts that the rewards took for right, whatever else is wrong with them."""
    attempts_left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OBJECTIONS, 0))
    """By the first reason that holds, in order."""
    num_kept: int = 0
    """Rows of the dataset."""
    num_prompts_kept: int = 0
    """Prompts that have a row in it."""
    difficulty: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIFFICULTIES, 0))
    """Prompts sampled, by the share of attempts that were right."""
    num_tokens: int = 0
    num_tokens_kept: int = 0
    overlaps: list[tuple[str, str]] = field(default_factory=list)
    """The first prompts that overlap with an evaluation set, and where."""

    @property
    def num_prompts_sampled(self) -> int:
        """Prompts that attempts were made at."""
        return self.num_prompts - sum(self.prompts_left_out.values())

    def count(self, attempts: Sequence[Attempt], objections: Sequence[str | None], difficulty: str) -> None:
        """Add the attempts at a prompt, each with why it is not kept, or None."""
        for attempt, objection in zip(attempts, objections, strict=True):
            self.num_attempts += 1
            self.num_right += attempt.is_right
            self.num_tokens += attempt.num_tokens
            if objection is None:
                self.num_kept += 1
                self.num_tokens_kept += attempt.num_tokens
            else:
                self.attempts_left_out[objection] += 1
        self.num_prompts_kept += None in objections
        self.difficulty[difficulty] += 1

    def check(self) -> None:
        """Assert that nothing was lost on the way."""
        assert self.num_attempts == self.num_kept + sum(self.attempts_left_out.values())
        assert self.num_prompts_sampled == sum(self.difficulty.values())


def name_difficulty(share_right: float) -> str:
    """Return the name in `DIFFICULTIES` of a share of right attempts.

    >>> name_difficulty(0.25), name_difficulty(0.3), name_difficulty(1.0)
    ('≤ 25 %', '≤ 50 %', 'always')
    """
    if share_right in (0, 1):
        return DIFFICULTIES[-1 if share_right else 0]
    return DIFFICULTIES[next(index for index, limit in enumerate((0.25, 0.5, 0.75, 1.0), 1) if share_right <= limit)]


def say_nothing_kept(report: RolloutReport) -> str | None:
    """Return why a rollout kept nothing, in words, or None where it kept something."""
    if report.num_kept:
        return None
    counts = Counter(report.attempts_left_out) if report.num_attempts else Counter(report.prompts_left_out)
    [(reason, number)] = counts.most_common(1)
    what = "attempts" if report.num_attempts else "prompts"
    total = report.num_attempts or report.num_prompts
    share = f"{number:,} of {total:,} {what}"
    return f"no row is kept, so there is nothing to train on; the commonest reason ({share}): {reason}"


def write_report(report: RolloutReport, settings: dict[str, Any], folder: Path) -> None:
    """Write the report as JSON, Markdown and a figure, each file whole or not at all."""
    content = {
        **asdict(report),
        "num_prompts_sampled": report.num_prompts_sampled,
        "settings": settings,
    }
    with replaced_file(folder / PLOT) as beside:
        draw_report(report).savefig(beside, dpi=DPI)
    write_text(folder / MARKDOWN, as_markdown(report))
    write_text(folder / JSON, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def as_markdown(report: RolloutReport) -> str:
    """Return the report for people."""
    sections = [
        "# Rejection sampling",
        f"{report.num_kept:,} rows of {report.num_prompts_kept:,} prompts are kept, of "
        f"{report.num_attempts:,} attempts at {report.num_prompts_sampled:,} prompts.",
        *([f"**Note:** {nothing}."] if (nothing := say_nothing_kept(report)) else []),
        f"![What was left out, and how hard the prompts were]({PLOT})",
        table(("what", "number", "share"), [(cell(name), *figures) for name, *figures in _lines(report)]),
        "## Difficulty",
        "Prompts by the share of their attempts that were right.",
        table(("right", "prompts"), [(name, f"{number:,}") for name, number in report.difficulty.items()]),
    ]
    if report.overlaps:
        number = report.prompts_left_out["in an evaluation set"]
        shown = report.overlaps[:SHOWN_OVERLAPS]
        sections += [
            "## Overlap with evaluation sets",
            f"{number:,} prompts were not sampled; the first {len(shown)}:",
            table(("prompt", "is in"), [(cell(prompt), cell(place)) for prompt, place in shown], "left"),
        ]
    return "\n\n".join(sections) + "\n"


def summary_table(report: RolloutReport) -> Table:
    """Return the counts as a table for the terminal."""
    result = Table(title="Rejection sampling", title_justify="left")
    result.add_column("what")
    for name in ("number", "share"):
        result.add_column(name, justify="right")
    for line in _lines(report):
        result.add_row(*line)
    return result


def _lines(report: RolloutReport) -> list[tuple[str, str, str]]:
    def line(name: str, number: int, of: int) -> tuple[str, str, str]:
        return name, f"{number:,}", f"{number / of:.1%}" if of else "–"

    lines = [line("prompts read", report.num_prompts, report.num_prompts)]
    for name, number in report.prompts_left_out.items():
        if number:
            lines.append(line(f"− {name}", number, report.num_prompts))
    lines.append(line("attempts", report.num_attempts, report.num_attempts))
    lines.append(line("of them right", report.num_right, report.num_attempts))
    for name, number in report.attempts_left_out.items():
        if number:
            lines.append(line(f"− {name}", number, report.num_attempts))
    return [*lines, line("rows kept", report.num_kept, report.num_attempts)]


def draw_report(report: RolloutReport) -> Figure:
    """Return a figure of what became of the attempts, and of how hard the prompts were."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    fates, difficulty = figure.subplots(1, 2)
    counts = Counter(report.attempts_left_out)
    names = ["kept", *(name for name in OBJECTIONS if counts[name])]
    numbers = [report.num_kept, *(counts[name] for name in names[1:])]
    colours = [COLOURS[2], *[COLOURS[1]] * (len(names) - 1)]
    bars = fates.barh(names, numbers, color=colours)
    fates.bar_label(bars, labels=[f"{number:,}" for number in numbers], padding=3, fontsize=8)
    fates.invert_yaxis()
    fates.set_xticks([])
    fates.set_title(f"What became of {report.num_attempts:,} attempts", fontsize=10)
    bars = difficulty.bar(list(report.difficulty), list(report.difficulty.values()), color=COLOURS[0])
    difficulty.bar_label(bars, labels=[f"{number:,}" for number in report.difficulty.values()], fontsize=8)
    difficulty.set_title("Prompts by the share of right attempts", fontsize=10)
    for axes in (fates, difficulty):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.12)
    return figure
