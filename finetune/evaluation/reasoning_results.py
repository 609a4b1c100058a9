"""What an evaluation of reasoning found: of one problem and of all, how it changed, and as JSON and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .measures import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    Measure,
    compare,
    mean_of_examples,
    percent_of_examples,
    with_ones,
)
from .measures import estimate as measured


@dataclass(frozen=True)
class ProblemResult:
    """One problem."""

    source: str
    messages: list[dict[str, Any]]
    difficulty: str | None
    figures: Mapping[str, float]
    """Over its attempts: shares from 0 to 1, and `tokens`."""
    num_right: int
    example: Mapping[str, Any]


@dataclass(frozen=True)
class ReasoningReport:
    """One model, or one stage of its training."""

    name: str
    num_problems: int
    num_samples: int
    figures: Mapping[str, Estimate]
    """In percent, and `tokens`; with 95 % intervals over problems."""
    by_difficulty: Mapping[str, tuple[int, Mapping[str, Estimate]]]
    """The number of problems and their figures, easiest label first where labels are numbers."""
    results: list[ProblemResult]
    settings: Mapping[str, Any]


def estimate_figures(results: Sequence[ProblemResult]) -> dict[str, Estimate]:
    """Return the figures of problems together: shares in percent, and `tokens`."""
    estimates = {}
    for name in results[0].figures:
        combine = mean_of_examples if name == "tokens" else percent_of_examples
        rows = with_ones([result.figures[name] for result in results])
        estimates[name] = measured(Measure(name, name, True, 1, combine), rows).before
    return estimates


def change(reports: Sequence[ReasoningReport], index: int) -> Estimate | None:
    """Return by how much pass@1 of a stage is above that of the one before, None where problems are not the same.

    Problems are drawn for both at once, so that what makes one hard for both does not blur the difference.
    """
    if not index:
        return None
    sides = [
        {(result.source, repr(result.messages)): result for result in reports[at].results} for at in (index - 1, index)
    ]
    if sides[0].keys() != sides[1].keys() or len(sides[0]) != len(reports[index].results):
        return None
    before, after = (with_ones([side[key].figures["pass@1"] for key in sides[0]]) for side in sides)
    return compare(Measure("pass@1", "pass@1", True, 1, percent_of_examples), before, after).difference


def as_json(report: ReasoningReport) -> dict[str, Any]:
    """Return the content of `reasoning.json`."""
    return {
        "name": report.name,
        "problems": report.num_problems,
        "samples": report.num_samples,
        "figures": {name: asdict(estimate) for name, estimate in report.figures.items()},
        "by_difficulty": {
            label: {"problems": number, "figures": {name: asdict(estimate) for name, estimate in figures.items()}}
            for label, (number, figures) in report.by_difficulty.items()
        },
        "intervals": {"confidence": CONFIDENCE, "method": "bootstrap of problems", "resamples": RESAMPLES},
        "settings": dict(report.settings),
        "results": [asdict(result) for result in report.results],
    }


def read_reasoning_report(file: Path) -> ReasoningReport:
    """Return a report as `write_reasoning_report` wrote it.

    Raises:
        DataError: the file is no such report.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        by_difficulty = {
            label: (each["problems"], _read_estimates(each["figures"]))
            for label, each in content["by_difficulty"].items()
        }
        return ReasoningReport(
            content["name"],
            content["problems"],
            content["samples"],
            _read_estimates(content["figures"]),
            by_difficulty,
            [ProblemResult(**result) for result in content["results"]],
            content["settings"],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file} is no report of an evaluation of reasoning ({reason})") from None


def _read_estimates(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    return {name: Estimate(**figure) for name, figure in figures.items()}
