"""What a check counted, as a figure."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .check import CheckReport
from .counts import Histogram

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart.
_BAR, _MARK = "#0072B2", "#D55E00"
# Bars are about 5 pixels wide: narrower ones cannot be told apart.
_MAX_BARS = 60


def draw_check(report: CheckReport) -> Figure:
    """Return a figure of histograms: lengths, turns and, with a tokenizer, the share of trained tokens."""
    tokens = report.tokens
    drawn = [("turns a row", report.counts.turns)]
    drawn.insert(0, ("tokens a row", tokens.lengths) if tokens else ("characters a row", report.counts.characters))
    if tokens:
        drawn.append(("trained tokens, % of the row", tokens.trained_percent))
    figure = Figure(figsize=(4.5 * len(drawn), 3.6), dpi=130, layout="constrained")
    for axes, (name, histogram) in zip(figure.subplots(1, len(drawn)), drawn, strict=True):
        _draw(axes, name, histogram)
    figure.suptitle(
        f"{report.counts.rows:,} rows of {', '.join(file.name for file in report.files)}"[:100], fontsize=10
    )
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
