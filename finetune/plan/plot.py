"""The memory of a plan as a stacked bar, beside what the changes would leave."""

from collections.abc import Sequence
from pathlib import Path

from ..atomic_files import replaced_file
from ..figures import COLOURS, DPI, new_figure
from .fit import Change
from .plan import Plan
from .report import PART_NAMES

_MOST_CHANGES = 4


def draw_memory(plan: Plan, changes: Sequence[Change], target: Path) -> None:
    """Write the bar of the fullest GPU, and of up to four changes, to a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    shown = [("as it is", plan.memory.parts())]
    shown += [(_short(change.what), change.memory.parts()) for change in changes[:_MOST_CHANGES]]
    gpu = plan.cluster.gpu
    model = plan.request.recipe.model.path.rstrip("/").rpartition("/")[2]
    figure, axes = new_figure(
        f"{model}, {plan.cluster.num_gpus} x {gpu.key.upper()}\nmemory of the fullest GPU", "GB", ""
    )
    figure.set_size_inches(max(6.5, 2.0 * len(shown) + 3.5), 4.6)
    places = range(len(shown))
    bottoms = [0.0] * len(shown)
    colours = (*COLOURS[:3], "#E7298A", "#666666", *COLOURS[3:], "#999999")
    for (part, label), colour in zip(PART_NAMES.items(), colours, strict=True):
        sizes = [parts[part] / 1e9 for _, parts in shown]
        if any(sizes):
            axes.bar(places, sizes, 0.55, bottom=bottoms, color=colour, label=label, edgecolor="white", linewidth=0.5)
            bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    for place, total in zip(places, bottoms, strict=True):
        axes.annotate(f"{total:.0f}", (place, total), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    available = gpu.memory_bytes / 1e9
    axes.axhline(available, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"there is: {available:.0f}",
        (len(shown) - 0.55, available),
        (0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set_xticks(list(places), [label for label, _ in shown], fontsize=8)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(0, 1.12 * max(*bottoms, available))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target) as beside:
        figure.savefig(beside, dpi=DPI, format="png")


def _short(text: str, width: int = 22) -> str:
    """Return `text` in lines of about `width` characters."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line][:4])
