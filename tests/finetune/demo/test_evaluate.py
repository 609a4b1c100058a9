"""The confidence interval, against hand-computed values."""

import pytest

from seeklet.finetune.demo.evaluate import MAX_NEW_TOKENS, Accuracy, wilson_interval
from seeklet.finetune.demo.task import write_solution
from seeklet.finetune.demo.tokenizer import build_tokenizer


def test_wilson_interval_by_hand() -> None:
    # z = 2, 8 of 10: centre (0.8 + 4/20) / 1.4 = 5/7; margin 2*sqrt(0.8*0.2/10 + 4/400) / 1.4 = 2*sqrt(0.026)/1.4.
    low, high = wilson_interval(8, 10, z=2)
    assert low == pytest.approx(5 / 7 - 2 * 0.026**0.5 / 1.4, abs=1e-12)
    assert high == pytest.approx(5 / 7 + 2 * 0.026**0.5 / 1.4, abs=1e-12)


def test_wilson_interval_at_the_ends() -> None:
    # At 0 of n the upper bound is z²/(n + z²): 4/(10 + 4); at n of n the mirror image.
    assert wilson_interval(0, 10, z=2) == (0.0, pytest.approx(4 / 14))
    assert wilson_interval(10, 10, z=2) == (pytest.approx(10 / 14), 1.0)


def test_published_example() -> None:
    # 15 of 148, 95 %: Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I.
    low, high = Accuracy(15, 148).interval
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)


def test_the_longest_solution_fits() -> None:
    longest = write_solution("0 - 9 - 9 - 9 - 9 - 9 - 9")
    ids = build_tokenizer()(longest)["input_ids"]
    assert len(ids) + 1 <= MAX_NEW_TOKENS
