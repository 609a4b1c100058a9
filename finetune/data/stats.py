"""How long prepared conversations are and how much of them is trained on: numbers, and a figure."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .counts import Histogram
from .tokenize_rows import TokenRow

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS, _MARK = ("#56B4E9", "#000000", "#009E73"), "#D55E00"
_BARS = 48


class TokenStats:
    """Counts token rows."""

    def __init__(self) -> None:
        self.tokens = Histogram()
        self.turns = Histogram()
        self.trained = Histogram()
        # Percent of a row's tokens that are trained on.
        self.trained_percent = Histogram()

    def add(self, row: TokenRow) -> None:
        """Count a row."""
        num_tokens, num_trained = len(row.input_ids), int(row.assistant_mask.sum())
        self.tokens.add(num_tokens)
        self.turns.add(len(row.row.messages))
        self.trained.add(num_trained)
        self.trained_percent.add(100 * num_trained // num_tokens)

    @property
    def num_rows(self) -> int:
        """Number of rows counted."""
        return self.tokens.number

    @property
    def trained_share(self) -> float:
        """Share of all tokens that are trained on, from 0 to 1; 0 for nothing."""
        return self.trained.total / self.tokens.total if self.tokens.total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        numbers: dict[str, Any] = {"rows": self.num_rows, "trained_share": round(self.trained_share, 4)}
        for name, histogram in (("tokens", self.tokens), ("turns", self.turns), ("trained_tokens", self.trained)):
            numbers[name] = {
                "total": histogram.total,
                "mean": round(histogram.mean, 1),
                **{f"p{percent}": histogram.percentile(percent) for percent in (5, 50, 95)},
                "max": histogram.maximum,
            }
        return numbers


def draw_stats(stats: Mapping[str, TokenStats], max_tokens: int) -> Figure:
    """Return a figure of tokens, turns and trained share per conversation; `stats` by name, such as "training".

    The first is filled, others are drawn as lines over it, each as shares of its own number of conversations.
    """
    shown = {name: one for name, one in stats.items() if one.num_rows}
    figure = Figure(figsize=(12, 3.8), dpi=130, layout="constrained")
    tokens, turns, trained = figure.subplots(1, 3)
    _draw(tokens, {name: one.tokens for name, one in shown.items()}, "tokens a conversation")
    _draw(turns, {name: one.turns for name, one in shown.items()}, "turns a conversation")
    _draw(trained, {name: one.trained_percent for name, one in shown.items()}, "share of tokens trained on", end=100)
    tokens.set_ylabel("share of conversations")
    for axes in (tokens, turns):
        # Where two whole numbers do not fit, one is enough.
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    trained.xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    if any(one.tokens.maximum > max_tokens / 2 for one in shown.values()):
        tokens.axvline(max_tokens, color=_MARK, linestyle="--", linewidth=1)
        tokens.set_xlim(0, 1.05 * max_tokens)
        note = f"data.max_tokens\n{max_tokens:,} "
        tokens.annotate(note, (max_tokens, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=8)
    handles, labels = tokens.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)), frameon=False)
    return figure


def _draw(axes: Axes, histograms: Mapping[str, Histogram], xlabel: str, end: int | None = None) -> None:
    largest = end or max((histogram.maximum for histogram in histograms.values()), default=1)
    width = max(1, -(-largest // _BARS))
    for i, (name, histogram) in enumerate(histograms.items()):
        shares = [0.0] * (largest // width + 1)
        for value, count in histogram.bins.items():
            shares[value // width] += count / histogram.number
        # Bars of single values stand around them, others begin with their first.
        edges = [bar * width - (0.5 if width == 1 else 0) for bar in range(len(shares) + 1)]
        label = f"{name}: {histogram.number:,}"
        axes.stairs(
            shares, edges, color=_COLOURS[i], fill=i == 0, linewidth=1.4, alpha=0.6 if i == 0 else 1, label=label
        )
    medians = (f"{name} {histogram.percentile(50):,}" for name, histogram in histograms.items())
    axes.set_title(f"median: {', '.join(medians)}" if histograms else "no conversations", fontsize=9)
    axes.set_xlabel(xlabel)
    axes.set_xlim(0, None if end is None else end)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
