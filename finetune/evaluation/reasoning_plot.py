"""Reasoning over the stages of a training as a figure: accuracy, length, form, and accuracy by difficulty."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import COLOURS
from .reasoning_results import ReasoningReport


def draw_stages(reports: Sequence[ReasoningReport]) -> Figure:
    """Return a figure of one stage or several in order, each value with its 95 % interval."""
    by_difficulty = any(report.by_difficulty for report in reports)
    figure = Figure(figsize=(12.5 if by_difficulty else 9.5, 4.4), layout="constrained")
    accuracy, length, *rest = figure.subplots(1, 2 + by_difficulty, width_ratios=[1.3, 1, *[1.1] * by_difficulty])
    names = [name for name in reports[0].figures if name.startswith(("pass@", "maj@"))]
    _draw_bars(accuracy, reports, [*names, "well_formed", "reasoned"])
    accuracy.set_ylim(0, 105)
    accuracy.set_ylabel("%")
    accuracy.set_title("Problems solved, and form", fontsize=10)
    _draw_bars(length, reports, ["tokens"])
    length.set_title("Mean length of an attempt (tokens)", fontsize=10)
    length.set_ylim(0, None)
    length.set_xticks([])
    if rest:
        _draw_difficulty(rest[0], reports)
    for axes in (accuracy, length, *rest):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    if len(reports) > 1:
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(reports)), frameon=False, fontsize=8
        )
    return figure


def _draw_bars(axes: Axes, reports: Sequence[ReasoningReport], names: Sequence[str]) -> None:
    """Draw a group of bars for each figure, a bar for each stage."""
    width = 0.8 / len(reports)
    for index, report in enumerate(reports):
        drawn = [(place, report.figures[name]) for place, name in enumerate(names) if name in report.figures]
        places = [place + (index - (len(reports) - 1) / 2) * width for place, _ in drawn]
        values = [estimate.value for _, estimate in drawn]
        errors = [[e.value - e.low for _, e in drawn], [e.high - e.value for _, e in drawn]]
        axes.bar(
            places,
            values,
            width * 0.92,
            yerr=errors,
            color=COLOURS[index % len(COLOURS)],
            label=report.name,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#444444"},
        )
    labels = {"tokens": "", "well_formed": "well-\nformed", "reasoned": "reasoned"}
    axes.set_xticks(range(len(names)), [labels.get(name, name) for name in names])
    axes.set_xlim(-0.6, len(names) - 0.4)


def _draw_difficulty(axes: Axes, reports: Sequence[ReasoningReport]) -> None:
    labels = list(dict.fromkeys(label for report in reports for label in report.by_difficulty))
    for index, report in enumerate(reports):
        drawn = [
            (place, report.by_difficulty[label][1]["pass@1"])
            for place, label in enumerate(labels)
            if label in report.by_difficulty
        ]
        values = [estimate.value for _, estimate in drawn]
        errors = [[e.value - e.low for _, e in drawn], [e.high - e.value for _, e in drawn]]
        places = [place + 0.06 * (index - (len(reports) - 1) / 2) for place, _ in drawn]
        axes.errorbar(
            places, values, yerr=errors, marker="o", markersize=4, capsize=2, color=COLOURS[index % len(COLOURS)]
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(str(reports[-1].settings.get("difficulty")), fontsize=8)
    axes.set_ylim(0, 105)
    axes.set_title("pass@1 by difficulty (%)", fontsize=10)
