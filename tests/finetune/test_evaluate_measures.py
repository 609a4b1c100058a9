"""Measures and their intervals, against hand-computed values and a full enumeration of the bootstrap."""

from itertools import product
from math import exp

import numpy as np
import pytest

from seeklet.finetune.evaluation.measures import compare, estimate, with_ones
from seeklet.finetune.evaluation.scores import BLEU, EXACT_MATCH, LOSS, PERPLEXITY


def test_loss_is_per_token_not_per_example() -> None:
    # 6 nats over 2 tokens and 2 nats over 6: 8 / 8 = 1, where the mean of examples would be (3 + 1/3) / 2.
    rows = np.array([[6.0, 2.0], [2.0, 6.0]])
    assert estimate(LOSS, rows).before.value == 1.0
    assert estimate(PERPLEXITY, rows).before.value == pytest.approx(exp(1), rel=1e-15)


def test_interval_is_that_of_all_resamples() -> None:
    values = [0.0, 1.0, 5.0, 7.0, 20.0]
    means = [sum(draw) / 5 for draw in product(values, repeat=5)]
    low, high = np.quantile(means, [0.025, 0.975])
    found = estimate(LOSS, with_ones(values), resamples=50_000).before
    assert found.value == pytest.approx(6.6)
    # Means are multiples of 0.2, so a quantile that is drawn well is off by no more than one of them.
    assert (found.low, found.high) == (pytest.approx(low, abs=0.21), pytest.approx(high, abs=0.21))


def test_pairing_removes_what_examples_share() -> None:
    # Examples differ by 100, after is better by 1 in each: the difference is exactly 1 in every resample.
    before = with_ones([0.0, 100.0, 200.0, 300.0])
    found = compare(LOSS, before, before + np.array([-1.0, 0.0]))
    assert found.difference is not None
    assert (found.difference.low, found.difference.value, found.difference.high) == (-1.0, -1.0, -1.0)
    assert found.before.high - found.before.low > 100
    # A lower loss is better.
    assert found.verdict == "better"
    assert compare(EXACT_MATCH, before, before + np.array([-1.0, 0.0])).verdict == "worse"


def test_unclear_difference() -> None:
    # One example gained, one lost: resamples without either, or with both, are no difference.
    found = compare(EXACT_MATCH, with_ones([1.0, 0.0, 1.0]), with_ones([0.0, 1.0, 1.0]))
    assert found.difference is not None and found.difference.value == 0
    assert found.verdict == "unclear"
    assert estimate(EXACT_MATCH, with_ones([1.0])).verdict == "unclear"


def test_draws_are_the_same_at_every_call() -> None:
    rows = with_ones(list(np.random.default_rng(3).normal(size=50)))
    assert compare(LOSS, rows, rows**2) == compare(LOSS, rows, rows**2)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        compare(LOSS, with_ones([1.0, 2.0]), with_ones([1.0, 2.0, 3.0]))


def test_bleu_combines_any_number_of_leading_dimensions() -> None:
    # 4 of 4 words, 3 of 3 pairs, … match, of 4 words asked for: 100. Half as long as the reference: exp(1 - 2).
    perfect = [4.0, 3, 2, 1, 4, 3, 2, 1, 4, 4]
    short = [4.0, 3, 2, 1, 4, 3, 2, 1, 4, 8]
    assert BLEU.combine(np.array(perfect)) == pytest.approx(100, abs=1e-9)
    np.testing.assert_allclose(BLEU.combine(np.array([[perfect, short]])), [[100, 100 * exp(-1)]], rtol=1e-12)
