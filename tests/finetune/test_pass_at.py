"""pass@k and maj@k, worked out by hand and by counting all subsets."""

from itertools import combinations
from math import prod

import pytest

from seeklet.finetune.evaluation.pass_at import MAX_SUBSETS, majority_at_k, pass_at_k


@pytest.mark.parametrize(
    ("num_samples", "num_right", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        # Of the six pairs of four, three have the right one.
        (4, 1, 2, 3 / 6),
        (4, 2, 2, 5 / 6),
        (4, 3, 2, 1),
        (4, 0, 4, 0),
        (4, 1, 4, 1),
        (1, 1, 1, 1),
        # 100·99·…·91 / (200·199·…·191), where C(200, 100) is too large for a float's digits.
        (200, 10, 100, 1 - prod((100 - i) / (200 - i) for i in range(10))),
    ],
)
def test_pass_at_k(num_samples: int, num_right: int, k: int, expected: float) -> None:
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(expected, rel=1e-12)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for right in range(7):
        for k in range(1, 7):
            subsets = list(combinations([index < right for index in range(6)], k))
            assert pass_at_k(6, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "right", "k", "expected"),
    [
        ("344", (1, 0, 0), 3, 0),
        ("334", (1, 1, 0), 3, 1),
        # One of two answers that are equally common, by chance.
        ("34", (1, 0), 2, 1 / 2),
        ("345", (1, 0, 0), 3, 1 / 3),
        ("3344", (1, 1, 0, 0), 4, 1 / 2),
        # "" has no vote, and alone none is right.
        (["", "", "3"], (0, 0, 1), 3, 1),
        (["", "", ""], (0, 0, 0), 3, 0),
        # k = 1 is pass@1.
        ("3344", (1, 1, 0, 0), 1, 1 / 2),
        # Pairs: 33 right; 34, 34, 34, 34 half; 44 wrong.
        ("3344", (1, 1, 0, 0), 2, (1 + 4 / 2) / 6),
        # The same words, once taken for right and once not.
        ("33", (1, 0), 2, 1 / 2),
    ],
)
def test_majority(answers: list[str], right: tuple[int, ...], k: int, expected: float) -> None:
    assert majority_at_k(list(answers), list(map(bool, right)), k) == pytest.approx(expected)


def test_majority_of_many_is_drawn() -> None:
    """2 of 3 of 12 right and 18 wrong: (C(12,3) + C(12,2)·18) / C(30,3) = 0.3468."""
    answers, right = ["3"] * 12 + ["4"] * 18, [True] * 12 + [False] * 18
    drawn = majority_at_k(answers, right, 3)
    # Four standard deviations of a share of so many draws.
    assert drawn == pytest.approx(0.3468, abs=4 * (0.3468 * 0.6532 / MAX_SUBSETS) ** 0.5)
    assert drawn == majority_at_k(answers, right, 3) != majority_at_k(answers, right, 3, seed=1)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_be_there(k: int) -> None:
    for call in (lambda: pass_at_k(4, 1, k), lambda: majority_at_k(["1"] * 4, [True] * 4, k)):
        with pytest.raises(ValueError, match=f"k is {k}; allowed: 1 to 4, the number of samples"):
            call()
