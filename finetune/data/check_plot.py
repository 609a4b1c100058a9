"""What a check counted, as a figure."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .check import CheckReport
from .counts import Histogram
from .stats import draw_stats

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart.
_BAR, _MARK = "#0072B2", "#D55E00"
# Narrower bars cannot be told apart.
_MAX_BARS = 48


def draw_check(report: CheckReport) -> Figure:
    """Return a figure of histograms: with a tokenizer as `draw_stats` has it, else of characters and turns a row."""
    if report.tokens:
        stats = {"training": report.tokens.training, "validation": report.tokens.validation}
        return draw_stats(stats, report.tokens.max_tokens)
    figure = Figure(figsize=(9, 3.8), dpi=130, layout="constrained")
    characters, turns = figure.subplots(1, 2)
    _draw(characters, "characters a row", report.counts.characters)
    _draw(turns, "turns a row", report.counts.turns)
    figure.suptitle(f"{report.counts.rows:,} row{'s' * (report.counts.rows != 1)}", fontsize=10)
    return figure


def _draw(axes: Axes, name: str, histogram: Histogram) -> None:
    longest = max(histogram.bins, default=0)
    # The last bar gathers what lies beyond the 99.5th percentile, so that one long row does not flatten all others.
    end = max(histogram.percentile(99.5) // histogram.width, 1)
    step = -(-(end + 1) // _MAX_BARS)
    bars: dict[int, int] = {}
    for number, count in histogram.bins.items():
        bar = min(number, end) // step
        bars[bar] = bars.get(bar, 0) + count
    width = step * histogram.width
    # Centred on the middle of the whole numbers that a bar stands for.
    middles = [bar * width + (width - 1) / 2 for bar in bars]
    axes.bar(middles, list(bars.values()), width=0.9 * width, color=_BAR)
    median = histogram.percentile(50)
    axes.axvline(median, color=_MARK, linewidth=1)
    axes.set_title(f"median {median:,}, most {histogram.maximum:,}", fontsize=9)
    axes.set_xlabel(name + (" (last bar: all above)" if longest > end else ""))
    axes.set_xlim(0, None)
    for axis in (axes.xaxis, axes.yaxis):
        # Where two whole numbers do not fit, one is enough.
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
