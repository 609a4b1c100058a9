"""The figures of reinforcement learning as PNG, from a run's metrics: rewards, lengths, entropy, idle groups, load."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .atomic_files import replaced_file
from .figures import COLOURS, DPI, new_figure
from .metrics import Entry
from .plots import curve, draw_expert_load, finish, load_layers, series


def draw_grpo_plots(entries: Sequence[Entry], folder: Path) -> dict[str, Path]:
    """Write the figures that `entries` have something for, and return their files by name; none before the first."""
    training = [entry for entry in entries if entry.get("reward") is not None and "step_time" in entry]
    if not training:
        return {}
    figures = {
        "reward": draw_rewards(training),
        "length": _draw(training, "Length of completions", "tokens", {"completions/mean_length": "mean"}),
        "exploration": _draw(
            training,
            "What is left to explore",
            "nats per token; share of groups",
            {"entropy": "entropy of the policy", "frac_reward_zero_std": "groups with equal rewards"},
        ),
    }
    if load_layers(training):
        figures["expert_load"] = draw_expert_load(training)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        with replaced_file(files[name]) as beside:
            figure.savefig(beside, dpi=DPI)
    return files


def draw_rewards(training: Sequence[Entry]) -> Figure:
    """Return the figure of each reward's mean, and of the weighted sum where there are several."""
    names = sorted({key for entry in training for key in entry if key.startswith("rewards/") and key.endswith("/mean")})
    means = {name: name.removeprefix("rewards/").removesuffix("/mean") for name in names}
    lines = {"reward": "weighted sum", **means} if len(means) > 1 else {"reward": next(iter(means.values()), "reward")}
    return _draw(training, "Mean reward of the samples", "reward", lines)


def _draw(training: Sequence[Entry], title: str, unit: str, lines: dict[str, str]) -> Figure:
    figure, axes = new_figure(title, unit)
    window = 1
    for (key, label), colour in zip(lines.items(), COLOURS, strict=False):
        steps, values = series([(entry["step"], entry.get(key)) for entry in training])
        if values:
            window = curve(axes, steps, values, colour, label)
    finish(axes, training, window)
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    return figure
