"""The figures of reinforcement learning as PNG, from a run's metrics: rewards, lengths, entropy, idle groups, load."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .metrics import Entry
from .plots import draw_expert_load, draw_lines, load_layers, save_figures


def draw_grpo_plots(entries: Sequence[Entry], folder: Path) -> dict[str, Path]:
    """Write the figures that `entries` have something for, and return their files by name; none before the first."""
    training = [entry for entry in entries if entry.get("reward") is not None and "step_time" in entry]
    if not training:
        return {}
    figures = {
        "reward": draw_rewards(training),
        "length": draw_lines(training, "Length of completions", "tokens", {"completions/mean_length": "mean"}),
        "exploration": draw_lines(
            training,
            "What is left to explore",
            "nats per token; share of groups",
            {"entropy": "entropy of the policy", "frac_reward_zero_std": "groups with equal rewards"},
        ),
    }
    if load_layers(training):
        figures["expert_load"] = draw_expert_load(training)
    return save_figures(figures, folder)


def draw_rewards(training: Sequence[Entry]) -> Figure:
    """Return the figure of each reward's mean, and of the weighted sum where there are several."""
    names = sorted({key for entry in training for key in entry if key.startswith("rewards/") and key.endswith("/mean")})
    means = {name: name.removeprefix("rewards/").removesuffix("/mean") for name in names}
    lines = {"reward": "weighted sum", **means} if len(means) > 1 else {"reward": next(iter(means.values()), "reward")}
    return draw_lines(training, "Mean reward of the samples", "reward", lines)
