"""The demo's task: chains of sums from reasoning-gym, solved with written-out running totals, and its verifier."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import reasoning_gym
from reasoning_gym.factory import ProceduralDataset

from .tokenizer import ANSWER, END_ANSWER, END_THINK, THINK

MIN_TERMS, MAX_TERMS = 4, 7
# reasoning-gym draws item i of seed s from Random(s + i): neighbouring seeds share nearly all items.
# Splits therefore start this far apart, and no split may be larger.
SPLIT_SPACING = 10_000_000
SPLITS = ("test", "validation", "train")
_FORMAT = re.compile(
    rf"{re.escape(THINK)}(?P<reasoning>.*?){re.escape(END_THINK)}{re.escape(ANSWER)}(?P<answer>.*?){re.escape(END_ANSWER)}",
    re.DOTALL,
)


@dataclass(frozen=True)
class Problem:
    """One problem: the user's message, the messages' true continuation, and reasoning-gym's own entry."""

    prompt: str
    """What the user says: the expression without spaces, `4-1+7+7-7`."""
    solution: str
    """What the assistant should say: `<think>4-1=3;3+7=10;…</think><answer>10</answer>`."""
    entry: dict
    """reasoning-gym's entry, which its verifier scores against."""


def write_solution(expression: str) -> str:
    """Return reasoning and answer for `expression`, terms and operators separated by spaces.

    >>> write_solution("4 - 9 + 2")
    '<think>4-9=-5;-5+2=-3</think><answer>-3</answer>'
    """
    first, *rest = expression.split()
    total = int(first)
    steps = []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        before = total
        total += int(term) if operator == "+" else -int(term)
        steps.append(f"{before}{operator}{term}={total}")
    return f"{THINK}{';'.join(steps)}{END_THINK}{ANSWER}{total}{END_ANSWER}"


def parse_answer(completion: str) -> str | None:
    """Return the text between the answer tags, or None unless reasoning and answer are both well formed."""
    match = _FORMAT.match(completion)
    return match["answer"] if match else None


class ChainSums:
    """Three disjoint streams of problems, `test`, `validation` and `train`, drawn from one seed.

    A problem belongs to the first split that draws it, in that order: a prompt that is in `test` is
    in no other split, however often the generator repeats it.
    """

    def __init__(self, seed: int, num_test: int, num_validation: int) -> None:
        self._seed = seed
        self.test = self._draw("test", num_test, excluded=())
        held_out = {problem.prompt for problem in self.test}
        self.validation = self._draw("validation", num_validation, excluded=held_out)
        self._held_out = held_out | {problem.prompt for problem in self.validation}
        self._verifier = self._source("test")

    def train(self, count: int) -> list[Problem]:
        """Return the first `count` different training problems: none is in `test` or `validation`."""
        return self._draw("train", count, excluded=self._held_out)

    def is_correct(self, completion: str, problem: Problem) -> bool:
        """Return whether reasoning-gym's verifier gives the completion's answer full marks.

        It gives part marks for substrings of the answer, so anything below 1.0 counts as wrong.
        """
        return self._verifier.score_answer(parse_answer(completion), problem.entry) == 1.0

    def _source(self, split: str) -> ProceduralDataset:
        start = (self._seed * len(SPLITS) + SPLITS.index(split)) * SPLIT_SPACING
        return reasoning_gym.create_dataset(
            "chain_sum",
            seed=start,
            size=SPLIT_SPACING,
            min_terms=MIN_TERMS,
            max_terms=MAX_TERMS,
            min_digits=1,
            max_digits=1,
        )

    def _draw(self, split: str, count: int, excluded: Collection[str]) -> list[Problem]:
        source = self._source(split)
        seen = set(excluded)

        def fresh():
            for entry in (source[index] for index in range(SPLIT_SPACING)):
                expression = entry["metadata"]["expression"]
                prompt = expression.replace(" ", "")
                if prompt not in seen:
                    seen.add(prompt)
                    yield Problem(prompt, write_solution(expression), entry)

        return list(islice(fresh(), count))
