"""The figures of distillation as PNG, from a run's metrics: divergence, lengths, entropy, held-out loss, load."""

from collections.abc import Sequence
from pathlib import Path

from ..metrics import Entry
from ..plots import draw_expert_load, draw_learning_rate, draw_lines, draw_speed, load_layers, save_figures

# Name: title, unit, and the lines by their keys in the metrics; of those that are there.
LINES = {
    "divergence": (
        "Divergence from the teacher",
        "nats per token",
        {"divergence": "training", "eval_divergence": "held-out"},
    ),
    "held_out": ("Loss on held-out conversations", "cross entropy (nats per token)", {"eval_loss": "held-out"}),
    "length": (
        "Length of the student's samples",
        "tokens",
        {"completions/mean_length": "training", "eval_completions/mean_length": "held-out"},
    ),
    "entropy": ("Entropy of the student", "nats per token", {"entropy": "training", "eval_entropy": "held-out"}),
    "mtp_loss": ("Multi-token prediction while training", "cross entropy (nats per token)", {"mtp_loss": "training"}),
}


def draw_distillation_plots(entries: Sequence[Entry], folder: Path) -> dict[str, Path]:
    """Write the figures that `entries` have something for, and return their files by name; none before the first."""
    training = [entry for entry in entries if entry.get("loss") is not None]
    if not training:
        return {}
    figures = {}
    for name, (title, unit, lines) in LINES.items():
        # On samples of its own the loss of what is held out is the divergence, once more.
        if name == "held_out" and any("eval_divergence" in entry for entry in entries):
            continue
        if any(entry.get(key) is not None for key in lines for entry in entries):
            figures[name] = draw_lines(entries, title, unit, lines)
    figures["learning_rate"] = draw_learning_rate(training)
    if load_layers(training):
        figures["expert_load"] = draw_expert_load(training)
    if any("tokens_per_s" in entry for entry in training):
        figures["tokens_per_s"] = draw_speed(training)
    return save_figures(figures, folder)
