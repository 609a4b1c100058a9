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
    gpu = plan.cluster.gpu
    # What changes the memory first: of other GPUs only the line is another.
    ranked = sorted(changes, key=lambda change: change.memory.parts() == plan.memory.parts())
    bars = [("as it is", plan.memory, gpu.memory_bytes)]
    bars += [(_short(change.what), change.memory, change.available) for change in ranked[:_MOST_CHANGES]]
    shown = [(label, memory.parts()) for label, memory, _ in bars]
    model = plan.request.recipe.model.path.rstrip("/").rpartition("/")[2]
    figure, axes = new_figure(
        f"{model}, {plan.cluster.num_gpus} x {gpu.key.upper()}: {'fits' if plan.fits else 'does not fit'}\n"
        "memory of the fullest GPU, and what it has (dashed)",
        "GB",
        "",
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
    for place, (_, _, available) in enumerate(bars):
        axes.hlines(available / 1e9, place - 0.42, place + 0.42, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f"{available / 1e9:.0f}", (place + 0.42, available / 1e9), (2, -3), textcoords="offset points", fontsize=8
        )
    axes.set_xticks(list(places), [label for label, _ in shown], fontsize=8)
    axes.set_xlim(-0.6, len(shown) - 0.35)
    axes.set_ylim(0, 1.12 * max(*bottoms, *(available / 1e9 for _, _, available in bars)))
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
