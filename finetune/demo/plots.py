"""The demo's figures as PNG: losses, validation accuracy, and expert load, over the training steps."""

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..figures import COLOURS, DPI, new_figure, smooth
from .train import History

SMOOTHED_STEPS = 20
LOAD_COLUMNS = 60
"""At most this many columns in the expert-load map; each sums the steps it stands for."""


def draw_plots(history: History, layer_names: list[str], stop_accuracy: float, folder: Path) -> dict[str, Path]:
    """Write the figures into `folder` and return their files by name."""
    figures = {
        "loss": draw_losses(history),
        "accuracy": draw_accuracy(history, stop_accuracy),
        "expert_load": draw_expert_load(history, layer_names),
    }
    folder.mkdir(exist_ok=True)
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name], dpi=DPI)
    return files


def draw_losses(history: History) -> Figure:
    """Return the figure of the LM and the MTP loss over steps, raw in the background, smoothed in front."""
    figure, axes = new_figure("Training loss, on the answers only", "cross entropy (nats per token, log scale)")
    steps = [record.step for record in history.steps]
    series = {
        "next token (LM)": [record.lm_loss for record in history.steps],
        "token after next (MTP module)": [record.mtp_loss for record in history.steps],
    }
    for (label, losses), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(losses, SMOOTHED_STEPS), color=colour, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_xlim(0, steps[-1])
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, title=f"bold: mean of the last {SMOOTHED_STEPS} steps", title_fontsize="small")
    return figure


def draw_accuracy(history: History, stop_accuracy: float) -> Figure:
    """Return the figure of validation accuracy over steps, with its 95 % interval and where training may stop."""
    total = history.validations[0].accuracy.total
    figure, axes = new_figure(f"Accuracy on {total} validation problems, by the verifier", "solved exactly (%)")
    steps = [record.step for record in history.validations]
    intervals = np.array([record.accuracy.interval for record in history.validations]) * 100
    shares = [record.accuracy.value * 100 for record in history.validations]
    axes.fill_between(steps, intervals[:, 0], intervals[:, 1], color=COLOURS[0], alpha=0.2, label="95 % interval")
    axes.plot(steps, shares, color=COLOURS[0], marker="o", linewidth=2, label="greedy answers")
    axes.axhline(stop_accuracy * 100, color="#555555", linestyle="--", linewidth=1)
    note = f"training stops at {stop_accuracy * 100:.0f} %"
    axes.annotate(note, (0.01, stop_accuracy * 100 - 1.5), xycoords=("axes fraction", "data"), va="top", fontsize=9)
    axes.set_ylim(-2, 102)
    axes.set_xlim(0, None)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center left")
    return figure


def draw_expert_load(history: History, layer_names: list[str]) -> Figure:
    """Return the figure of each expert's load over steps, a map per layer, and each layer's imbalance."""
    load = relative_load(history, LOAD_COLUMNS)
    num_layers, num_experts, _ = load.shape
    figure = Figure(figsize=(9, 1.15 * num_layers + 2.8), layout="constrained")
    grid = figure.subplots(num_layers + 1, 1, sharex=True, squeeze=False, height_ratios=[1] * num_layers + [2])
    *maps, curves = grid[:, 0]
    last_step = history.steps[-1].step
    colours = ScalarMappable(Normalize(vmin=0, vmax=2), cmap="RdBu_r")
    for axes, name, layer in zip(maps, layer_names, load, strict=True):
        area = (0, last_step, num_experts, 0)
        axes.imshow(layer, norm=colours.norm, cmap=colours.cmap, extent=area, aspect="auto", interpolation="none")
        axes.set_ylabel(f"{name}\nexpert", rotation=0, ha="right", va="center", labelpad=12)
        axes.set_yticks(np.arange(num_experts) + 0.5, range(num_experts), fontsize=6)
    centres = (np.arange(load.shape[-1]) + 0.5) * last_step / load.shape[-1]
    for name, fullest, colour in zip(layer_names, load.max(axis=1), cycle(COLOURS), strict=False):
        curves.plot(centres, fullest, color=colour, linewidth=1.5, label=name)
    curves.axhline(1, color="#555555", linestyle="--", linewidth=1)
    curves.set_ylabel("fullest expert\n(times the mean)")
    curves.set_ylim(0.9, None)
    curves.grid(alpha=0.25)
    curves.legend(frameon=False, fontsize=8, ncols=num_layers, loc="upper right")
    curves.set_xlabel("optimiser step")
    maps[0].set_title("Expert load: tokens per expert over the layer's mean (white: balanced)")
    figure.colorbar(colours, ax=maps, label="times the mean", ticks=[0, 0.5, 1, 1.5, 2], extend="max")
    return figure


def relative_load(history: History, max_columns: int) -> np.ndarray:
    """Return each expert's load over the mean of its layer: (layers, experts, columns).

    The steps are cut into at most `max_columns` equal stretches, and tokens are summed over each.
    """
    counts = np.array([record.expert_load for record in history.steps], dtype=np.float64)
    stretches = np.array_split(counts, min(max_columns, len(counts)))
    summed = np.stack([stretch.sum(axis=0) for stretch in stretches], axis=-1)
    return summed / summed.mean(axis=1, keepdims=True)
