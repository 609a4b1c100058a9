"""One figure over many examples, before and after training, with confidence intervals by the paired bootstrap."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
# Rows of resampling weights made at a time: 200 of 100,000 examples are 160 MB.
CHUNK = 200


@dataclass(frozen=True)
class Measure:
    """A figure that follows from sums over examples: each example adds K numbers, `combine` makes the figure of sums.

    A mean has K = 2 (value, 1); a loss per token (nats, tokens); BLEU the counts and lengths it is defined by. So any
    resample of the examples has its own figure, computed as the figure itself is.
    """

    name: str
    """As in evaluation.json."""
    label: str
    """As in tables, with the unit."""
    higher_is_better: bool
    digits: int
    """Decimals shown."""
    combine: Callable[[Array], Array]
    """Sums (..., K) to figures (...)."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One measure over `num_examples`; `after` and `difference` (after - before) are None with one model only."""

    measure: Measure
    num_examples: int
    before: Estimate
    after: Estimate | None = None
    difference: Estimate | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference leaves out 0, else `unclear`."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return "unclear"
        return "better" if (self.difference.low > 0) == self.measure.higher_is_better else "worse"


def mean_of_examples(sums: Array) -> Array:
    """Return the mean: sums (..., 2) of values and of ones."""
    return sums[..., 0] / sums[..., 1]


def percent_of_examples(sums: Array) -> Array:
    """Return the mean in percent: sums (..., 2) of shares and of ones."""
    return 100 * mean_of_examples(sums)


def perplexity(sums: Array) -> Array:
    """Return exp of the loss per token: sums (..., 2) of nats and of tokens."""
    return np.exp(mean_of_examples(sums))


def with_ones(values: list[float]) -> Array:
    """Return (N, 2): what each example adds to a mean."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)


def estimate(measure: Measure, rows: Array, resamples: int = RESAMPLES) -> Comparison:
    """Return the figure of one model: rows (N, K), one an example, N at least 1."""
    (value,), (resampled,) = _figures(measure, [rows], resamples)
    return Comparison(measure, len(rows), _estimate(value, resampled))


def compare(measure: Measure, before: Array, after: Array, resamples: int = RESAMPLES) -> Comparison:
    """Return the figures of two models on the same examples: rows (N, K), one an example, N at least 1.

    Examples are drawn N of N with replacement, the same for both models, so that what makes an example hard for both
    does not blur the difference. Intervals are percentiles; the draws are the same at every call.
    """
    if before.shape != after.shape:
        raise ValueError(f"rows of before and after differ in shape: {before.shape} and {after.shape}")
    (old, new), (old_resampled, new_resampled) = _figures(measure, [before, after], resamples)
    return Comparison(
        measure,
        len(before),
        _estimate(old, old_resampled),
        _estimate(new, new_resampled),
        _estimate(new - old, new_resampled - old_resampled),
    )


def _figures(measure: Measure, sides: list[Array], resamples: int) -> tuple[list[float], list[Array]]:
    number = len(sides[0])
    random = np.random.default_rng(0)
    resampled: list[list[Array]] = [[] for _ in sides]
    for start in range(0, resamples, CHUNK):
        draws = random.multinomial(number, np.full(number, 1 / number), size=min(CHUNK, resamples - start))
        for figures, rows in zip(resampled, sides, strict=True):
            figures.append(measure.combine(draws @ rows))
    values = [float(measure.combine(rows.sum(axis=0))) for rows in sides]
    return values, [np.concatenate(figures) for figures in resampled]


def _estimate(value: float, resampled: Array) -> Estimate:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
