"""A run's figures as PNG, from its metrics: losses, learning rate, expert load, multi-token prediction, speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .atomic_files import replaced_file
from .figures import COLOURS, DPI, new_figure, smooth
from .metrics import Entry

LOAD = "expert_load_max_over_mean/layer_"
# Curves are smoothed over this share of the entries, and each entry is shown faintly behind.
SMOOTHED_SHARE = 1 / 20
# More layers than colours are shown as a map.
MOST_CURVES = len(COLOURS)


def draw_plots(entries: Sequence[Entry], folder: Path) -> dict[str, Path]:
    """Write the figures that `entries` (see `metrics.read_metrics`) have something for, and return their files by name.

    Without an entry of training there are none.
    """
    training = [entry for entry in entries if entry.get("loss") is not None]
    if not training:
        return {}
    figures = {"loss": draw_loss(entries), "learning_rate": draw_learning_rate(training)}
    if any("mtp_loss" in entry for entry in training):
        figures["mtp_loss"] = draw_mtp_loss(training)
    if load_layers(entries):
        figures["expert_load"] = draw_expert_load(entries)
    if any("tokens_per_s" in entry for entry in training):
        figures["tokens_per_s"] = draw_speed(training)
    return save_figures(figures, folder)


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Write figures as PNG, each in one step, and return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        with replaced_file(files[name]) as beside:
            figure.savefig(beside, dpi=DPI)
    return files


def draw_lines(entries: Sequence[Entry], title: str, unit: str, lines: Mapping[str, str]) -> Figure:
    """Return a figure of what `entries` have under the keys of `lines`, whose values are the labels; it shows 0."""
    figure, axes = new_figure(title, unit)
    window = 1
    for (key, label), colour in zip(lines.items(), COLOURS, strict=False):
        steps, values = series([(entry["step"], entry.get(key)) for entry in entries])
        if values:
            window = max(window, curve(axes, steps, values, colour, label))
    finish(axes, entries, window)
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    return figure


def draw_loss(entries: Sequence[Entry]) -> Figure:
    """Return the figure of the next-token loss while training and on held-out conversations."""
    figure, axes = new_figure("Loss on what the assistant says", "cross entropy (nats per token)")
    steps, losses = series([train_loss(entry) for entry in entries])
    window = curve(axes, steps, losses, COLOURS[0], "training")
    steps, losses = series([(entry["step"], entry.get("eval_loss")) for entry in entries])
    if steps:
        axes.plot(steps, losses, color=COLOURS[1], marker="o", markersize=4, linewidth=2, label="held-out")
        best = int(np.argmin(losses))
        axes.plot(steps[best], losses[best], color=COLOURS[1], marker="o", markersize=10, fillstyle="none")
        note = f"best {losses[best]:.3f}"
        axes.annotate(note, (steps[best], losses[best]), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    finish(axes, entries, window)
    return figure


def draw_mtp_loss(training: Sequence[Entry]) -> Figure:
    """Return the figure of the loss of multi-token prediction, beside that of the next token."""
    figure, axes = new_figure("Multi-token prediction while training", "cross entropy (nats per token)")
    window = 1
    for name, label, colour in (("lm_loss", "next token", COLOURS[0]), ("mtp_loss", "tokens after it", COLOURS[2])):
        window = curve(axes, *series([(entry["step"], entry.get(name)) for entry in training]), colour, label)
    finish(axes, training, window)
    return figure


def draw_learning_rate(training: Sequence[Entry]) -> Figure:
    """Return the figure of the learning rate, and below it the norm of the gradient before clipping."""
    figure, axes = new_figure("Learning rate and gradient", "")
    figure.delaxes(axes)
    rate, norm = figure.subplots(2, 1, sharex=True)
    rate.set_title("Learning rate, and norm of the gradient before clipping")
    rate.plot(*series([(entry["step"], entry.get("learning_rate")) for entry in training]), color=COLOURS[0])
    rate.set_ylabel("learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.set_ylim(0, None)
    steps, norms = series([(entry["step"], entry.get("grad_norm")) for entry in training])
    window = curve(norm, steps, norms, COLOURS[3])
    norm.set_ylabel("gradient norm")
    norm.set_xlabel("optimiser step")
    for each in (rate, norm):
        each.spines[["top", "right"]].set_visible(False)
        finish(each, training, window)
    norm.set_ylim(0, None)
    return figure


def draw_speed(training: Sequence[Entry]) -> Figure:
    """Return the figure of real tokens per second of training, validations and checkpoints left out."""
    figure, axes = new_figure("Speed of training", "tokens per second")
    steps, speeds = series([(entry["step"], entry.get("tokens_per_s")) for entry in training])
    window = curve(axes, steps, speeds, COLOURS[0])
    middle = median(speeds)
    axes.axhline(middle, color="#555555", linestyle="--", linewidth=1, label=f"median {middle:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    finish(axes, training, window)
    axes.set_ylim(0, None)
    return figure


def draw_expert_load(entries: Sequence[Entry]) -> Figure:
    """Return the figure of each layer's fullest expert over the mean: a curve a layer, or a map of many layers."""
    layers = load_layers(entries)
    measured = [entry for entry in entries if f"{LOAD}{layers[0]}" in entry]
    steps = [entry["step"] for entry in measured]
    load = np.array([[entry[f"{LOAD}{layer}"] for entry in measured] for layer in layers])
    figure, axes = new_figure("Load of the fullest expert of each layer (1: all have the same)", "times the mean")
    if len(layers) <= MOST_CURVES:
        window = 1
        for layer, values, colour in zip(layers, load, COLOURS, strict=False):
            window = curve(axes, steps, list(values), colour, f"layer {layer}")
        axes.axhline(1, color="#555555", linestyle="--", linewidth=1)
        finish(axes, entries, window)
        axes.set_ylim(min(0.95, load.min()), None)
        return figure
    colours = Normalize(vmin=1, vmax=max(2.0, float(np.quantile(load, 0.98))))
    edges = np.concatenate(([0], steps))
    mesh: Any = axes.pcolormesh(edges, np.arange(len(layers) + 1), load, norm=colours, cmap="viridis")
    figure.colorbar(mesh, ax=axes, label="times the mean", extend="max")
    shown = np.unique(np.linspace(0, len(layers) - 1, 12).astype(int))
    axes.set_yticks(shown + 0.5, [str(layers[i]) for i in shown])
    axes.set_ylabel("layer")
    axes.invert_yaxis()
    return figure


def series(points: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Return the steps and the values of those points that have one."""
    there = [(step, value) for step, value in points if value is not None]
    return [step for step, _ in there], [value for _, value in there]


def train_loss(entry: Entry) -> tuple[int, float | None]:
    """Return the step and the next-token loss of an entry, which other losses may have been added to."""
    return entry["step"], entry.get("lm_loss", entry.get("loss"))


def load_layers(entries: Sequence[Entry]) -> list[int]:
    """Return the layers whose expert load was logged."""
    names = {name for entry in entries for name in entry if name.startswith(LOAD)}
    return sorted(int(name.removeprefix(LOAD)) for name in names)


def curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, label: str | None = None) -> int:
    """Draw the values faintly and their running mean in bold; return over how many entries that is taken."""
    window = max(1, round(len(values) * SMOOTHED_SHARE))
    # A run of a few entries is shown as points, which a line alone would hide.
    marker = {"marker": "o", "markersize": 3} if len(values) <= 20 else {}
    if window > 1:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, window), color=colour, linewidth=2, label=label, **marker)
    return window


def finish(axes: Axes, entries: Sequence[Entry], window: int) -> None:
    """Give the axes their limits, grid and legend; `window` is what the curves are a mean over."""
    axes.set_xlim(0, max(entry["step"] for entry in entries) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        title = f"bold: mean of {window} entries" if window > 1 else None
        axes.legend(frameon=False, fontsize=9, title=title, title_fontsize="small")
