"""Shares of problems solved when a model may try more than once: pass@1, pass@k and maj@k as pure functions."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from random import Random

# Of more subsets of samples than these, as many are drawn; the error of a problem's maj@k is then below 2.5 points.
MAX_SUBSETS = 400


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples is right: 1 − C(n−c, k) / C(n, k).

    n samples were drawn, of which c are right (Chen et al., arXiv 2107.03374, eq. 1). With k = 1 it is c / n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; allowed: 1 to {num_samples}, the number of samples")
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[str], right: Sequence[bool], k: int, seed: int = 0) -> float:
    """Return the chance that the commonest answer of k of the samples is right.

    Samples with an answer of "" have no vote. Among answers that are equally common each is taken with the same
    probability. Over all ways to choose k, or `MAX_SUBSETS` drawn by `seed` where there are more.

    >>> majority_at_k(["3", "4", "4"], [True, False, False], 3)
    0.0
    """
    number = len(answers)
    if not 1 <= k <= number:
        raise ValueError(f"k is {k}; allowed: 1 to {number}, the number of samples")
    if comb(number, k) <= MAX_SUBSETS:
        subsets: Sequence[Sequence[int]] = list(combinations(range(number), k))
    else:
        random = Random(seed)
        subsets = [random.sample(range(number), k) for _ in range(MAX_SUBSETS)]
    return sum(_majority([answers[i] for i in each], [right[i] for i in each]) for each in subsets) / len(subsets)


def _majority(answers: Sequence[str], right: Sequence[bool]) -> float:
    votes: dict[str, list[bool]] = {}
    for answer, is_right in zip(answers, right, strict=True):
        if answer:
            votes.setdefault(answer, []).append(is_right)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    # A verifier may tell apart what is written alike: the share of right ones then.
    winners = [sum(given) / len(given) for given in votes.values() if len(given) == most]
    return sum(winners) / len(winners)
