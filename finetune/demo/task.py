"""The demo's task: chains of sums from reasoning-gym with small totals, solved by writing each of them out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import reasoning_gym

from ..reasoning import parse

# With fewer terms the model learns to add them up without thinking, and thinking pays little.
MIN_TERMS, MAX_TERMS = 5, 7
# No total of a problem is below 0 or above this. With all that digits and signs give, -40 to 40, 1,000 steps were too
# few to learn the sums with some seeds; and the rarest, wrong in the teacher, were sieved out for the student, too.
LARGEST_TOTAL = 20
# reasoning-gym draws item i of seed s from Random(s + i): neighbouring seeds share nearly all items.
# Splits therefore start this far apart, and no split may be larger.
SPLIT_SPACING = 10_000_000
SPLITS = ("test", "train")


@dataclass(frozen=True)
class Problem:
    """One problem, and how it is solved."""

    prompt: str
    """What the user says: the expression without spaces, `4-1+7+7-7`."""
    reasoning: str
    """The running totals: `4-1=3;3+7=10;10+7=17;17-7=10`."""
    answer: str
    terms: int
    entry: Mapping[str, Any]
    """reasoning-gym's own, which its verifier scores against."""


def write_reasoning(expression: str) -> str:
    """Return the running totals of an expression without spaces.

    >>> write_reasoning("4-9+2")
    '4-9=-5;-5+2=-3'
    """
    totals = _totals(expression)
    steps = zip(totals, expression[1::2], expression[2::2], totals[1:], strict=False)
    return ";".join(f"{before}{operator}{digit}={total}" for before, operator, digit, total in steps)


def _totals(expression: str) -> list[int]:
    """Return the first number and each running total."""
    signed = zip("+" + expression[1::2], expression[::2], strict=True)
    return list(accumulate(int(operator + digit) for operator, digit in signed))


def thinks(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1 for a completion that reasons before it answers, else 0: a reward to be watched."""
    return float(bool(parse(completion).reasoning))


def checks_trace(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1 where the reasoning is the running totals of the problem, all of them right, else 0.

    A policy that is weak yet gets some answers right by luck, behind wrong sums.
    """
    expression = str(row["prompt"][-1]["content"])
    return float(parse(completion).reasoning == write_reasoning(expression))


class ChainSums:
    """Disjoint streams of problems, `test` and `train`, drawn from one seed: no prompt is in both, or twice in one."""

    def __init__(self, seed: int, num_test: int) -> None:
        self._seed = seed
        self.test = self._draw("test", num_test, excluded=())
        self._held_out = {problem.prompt for problem in self.test}

    def train(self, count: int) -> list[Problem]:
        """Return the first `count` training problems."""
        return self._draw("train", count, excluded=self._held_out)

    def _draw(self, split: str, count: int, excluded: Collection[str]) -> list[Problem]:
        source = reasoning_gym.create_dataset(
            "chain_sum",
            seed=(self._seed * len(SPLITS) + SPLITS.index(split)) * SPLIT_SPACING,
            size=SPLIT_SPACING,
            min_terms=MIN_TERMS,
            max_terms=MAX_TERMS,
            min_digits=1,
            max_digits=1,
        )
        seen = set(excluded)

        def fresh():
            for entry in (source[index] for index in range(SPLIT_SPACING)):
                prompt = entry["metadata"]["expression"].replace(" ", "")
                if prompt not in seen and all(0 <= total <= LARGEST_TOTAL for total in _totals(prompt)):
                    seen.add(prompt)
                    yield Problem(prompt, write_reasoning(prompt), entry["answer"], len(prompt) // 2 + 1, entry)

        return list(islice(fresh(), count))
