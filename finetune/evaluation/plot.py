"""The figures of an evaluation as PNG: each measure before and after, with its intervals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..atomic_files import replaced_file
from .measures import Comparison, Estimate

# Of Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {"before": "#7F7F7F", "after": "#0072B2"}
DPI = 130


def draw_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Return a figure with a row and a scale of its own for each measure: values as dots, 95 % intervals as lines."""
    figure = Figure(figsize=(7.5, 0.4 + 0.85 * len(comparisons)), layout="constrained")
    rows = figure.subplots(len(comparisons), 1, squeeze=False)[:, 0]
    for axes, comparison in zip(rows, comparisons, strict=True):
        sides: dict[str, Estimate | None] = {"before": comparison.before, "after": comparison.after}
        # The first stands above the second.
        for height, (name, estimate) in enumerate(reversed(sides.items())):
            if estimate is not None:
                errors = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
                axes.errorbar(
                    estimate.value,
                    height,
                    xerr=errors,
                    fmt="o",
                    color=COLOURS[name],
                    capsize=3,
                    linewidth=2,
                    label=name,
                )
        axes.set_ylim(-0.7, 1.7)
        axes.set_yticks([])
        better = "higher" if comparison.measure.higher_is_better else "lower"
        label = f"{comparison.measure.label}\n{better} is better"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.25)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle("Held-out conversations, with 95 % intervals", x=0.02, ha="left", fontsize=10)
    return figure


def save_plot(comparisons: Sequence[Comparison], file: Path) -> None:
    """Write the figure to a PNG file."""
    with replaced_file(file) as beside:
        draw_comparisons(comparisons).savefig(beside, dpi=DPI)
