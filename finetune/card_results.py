"""What a run has reached, as the table of a model card."""

import math
from collections.abc import Sequence
from statistics import fmean

from .metrics import Entry

# A single step of sampling says little: the first and the last of so many parts are shown.
PARTS = 10
# Of stages that learn from samples: the figure, what it is, and whether more of it is better.
MEASURED = {
    "grpo": ("reward", "mean reward", True),
    "distill": ("divergence", "divergence from the teacher, nats per token", False),
    "distill-topk": ("divergence", "divergence from the teacher, nats per token", False),
}


def describe_results(stage: str, entries: Sequence[Entry]) -> str:
    """Return the tables of a run's metrics, as markdown."""
    tables = []
    if stage in MEASURED:
        tables.append(_measured(entries, *MEASURED[stage]))
    if stage in ("sft", "distill-topk"):
        tables.append(_losses(entries, stage == "sft"))
    return "\n\n".join(table for table in tables if table)


def first_and_last(entries: Sequence[Entry], name: str) -> tuple[float, float]:
    """Return the mean of a figure over the first tenth of the entries that have it, and over the last; NaN of none."""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    size = math.ceil(len(values) / PARTS)
    return (fmean(values[:size]), fmean(values[-size:])) if values else (math.nan, math.nan)


def _measured(entries: Sequence[Entry], name: str, what: str, more_is_better: bool) -> str:
    there = [entry for entry in entries if entry.get(name) is not None]
    rows = []
    if there:
        size = math.ceil(len(there) / PARTS)
        first, last = first_and_last(there, name)
        rows += [("training, first", there[:size], first), ("training, last", there[-size:], last)]
    held_out = [entry for entry in entries if entry.get(f"eval_{name}") is not None]
    if held_out:
        best = (max if more_is_better else min)(held_out, key=lambda entry: entry[f"eval_{name}"])
        rows += [
            (f"held-out, {which}", [entry], entry[f"eval_{name}"])
            for which, entry in (("first", held_out[0]), ("best", best))
        ]
    table = [f"| {what} | steps | mean |", "|---|---:|---:|"]
    table += [f"| {label} | {_steps(of)} | {value:.4f} |" for label, of, value in rows]
    return "\n".join(table) if rows else ""


def _steps(entries: Sequence[Entry]) -> str:
    first, last = entries[0]["step"], entries[-1]["step"]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _losses(entries: Sequence[Entry], of_training: bool) -> str:
    held_out = [(entry["step"], entry["eval_loss"]) for entry in entries if entry.get("eval_loss") is not None]
    training = [(entry["step"], entry.get("lm_loss", entry["loss"])) for entry in entries if entry.get("loss")]
    rows = []
    if held_out:
        (first, before), (best, least) = held_out[0], min(held_out, key=lambda pair: pair[1])
        rows.append(("held-out, first", first, before))
        rows.append(("held-out, best", best, least))
    if training and of_training:
        rows.append(("training, last", *training[-1]))
    table = ["| loss | step | nats per token | perplexity |", "|---|---:|---:|---:|"]
    table += [f"| {name} | {step:,} | {loss:.4f} | {_perplexity(loss)} |" for name, step, loss in rows]
    return "\n".join(table) if rows or of_training else ""


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 20 else "over 10^8"
