"""The example's report: `report.md`, with figures before and after, a plot, examples and how tokenizers differ."""

from collections.abc import Sequence
from pathlib import Path

from ..atomic_files import write_text
from ..evaluation.markdown import cell, literal, table
from ..evaluation.reasoning_report import label_of, show, stage_rows
from ..pipeline.report import show_time
from ..pipeline.settings import REPORT as PIPELINE_REPORT
from ..smollm2 import MODEL_CREDIT
from .findings import Example, Findings, choose_examples

REPORT = "report.md"
# Within the example's folder: that of the pipeline, and the loss of its stage.
RUN, LOSS_PLOT = "run", "student/plots/loss.png"
PASS_AT_1 = "pass@1"


def write_report(findings: Findings, folder: Path) -> None:
    """Write `report.md` into `folder`, which holds the pipeline's own folder.

    Raises:
        OSError: it cannot be written.
    """
    write_text(folder / REPORT, as_markdown(findings))


def as_markdown(findings: Findings) -> str:
    """Return the content of `report.md`."""
    before, after, trainer = findings.before, findings.after, findings.recipe["trainer"]
    columns, rows = stage_rows([before, after])
    names = ("before", "after")
    sections = [
        "# SmolLM2 learns to reason from a nano teacher",
        f"SmolLM2-135M-Instruct learned, on this machine's CPU, from what `make demo`'s teacher of half a million "
        f"parameters wrote: {trainer['max_steps']:,} optimiser steps, which is {findings.epochs:.2f} times the "
        f"{findings.num_traces:,} traces that were accepted, in {show_time(findings.seconds)}. "
        f"Measured on {before.num_problems:,} held-out sums, one greedy answer to each; "
        "right is what is the number and nothing else behind the reasoning.",
        *(f"**CHECK FAILED: {literal(failure)}.**" for failure in findings.failed_checks()),
        table(columns, [[name, *figures] for name, (_, *figures) in zip(names, rows, strict=True)]),
        "With 95 % intervals over problems. Were the last number of an answer to count, whatever else it says, "
        f"{findings.last_number_right[0]:.1%} were right before, and {findings.last_number_right[1]:.1%} after."
        + _teacher(findings),
        *_by_difficulty(findings),
        "## Loss",
        f"![Loss]({RUN}/{LOSS_PLOT})",
        "## Before and after",
        "The same held-out problems, greedily.",
        *map(_example, choose_examples(before, after)),
        "## Two tokenizers",
        *_tokenizers(findings),
        "## Where the model is from",
        f"{MODEL_CREDIT}. More plots, traces and the whole recipe: [{RUN}/{PIPELINE_REPORT}]({RUN}/{PIPELINE_REPORT}).",
    ]
    return "\n\n".join(sections) + "\n"


def _teacher(findings: Findings) -> str:
    if findings.teacher is None:
        return ""
    return f" The teacher gets {show(findings.teacher, PASS_AT_1)} % of the same problems right, greedily."


def _by_difficulty(findings: Findings) -> list[str]:
    before, after = findings.before.by_difficulty, findings.after.by_difficulty
    if len(before) < 2:
        return []
    rows = [
        (cell(label), f"{number:,}", show(figures[PASS_AT_1], PASS_AT_1), show(after[label][1][PASS_AT_1], PASS_AT_1))
        for label, (number, figures) in before.items()
    ]
    return [table((label_of(PASS_AT_1), "problems", "before", "after"), rows)]


def _example(example: Example) -> str:
    lines = [
        f"{name:<6}  {'right' if is_right else 'wrong'}  {' '.join(text.split())}"
        for name, (text, is_right) in (("before", example.before), ("after", example.after))
    ]
    return "\n".join([f"`{example.asked}`:", "", "```text", *lines, "```"])


def _tokenizers(findings: Findings) -> list[str]:
    trace = findings.trace
    sections = [
        "Teacher and student write different tokens, so the student learns from the traces as text, in tokens of its "
        f"own. One trace, of the problem `{trace.asked}`, cut by both:",
        "\n".join(
            [
                "```text",
                f"teacher, {len(trace.teacher_tokens)} tokens: {_show_tokens(trace.teacher_tokens)}",
                f"student, {len(trace.student_tokens)} tokens: {_show_tokens(trace.student_tokens)}",
                "```",
            ]
        ),
    ]
    if findings.split_tags:
        sections.append(f"{literal(findings.split_tags[0].upper() + findings.split_tags[1:])}.")
    return sections


def _show_tokens(tokens: Sequence[str]) -> str:
    return "|".join(token.replace("\n", "\\n") for token in tokens)
