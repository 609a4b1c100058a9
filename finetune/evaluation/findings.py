"""What an evaluation found, as report and terminal show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .generation import Answer
from .measures import Array, Comparison, Measure, compare, estimate
from .questions import Question

# Task of lm-evaluation-harness -> metric -> (value, standard error or None).
HarnessScores = Mapping[str, Mapping[str, tuple[float, float | None]]]


@dataclass(frozen=True)
class Side:
    """What one model did on the held-out conversations."""

    path: str
    """The model's folder or name on the Hub, or the adapter's folder."""
    rows: Mapping[Measure, Array]
    """By measure, what each example adds to it."""
    answers: Sequence[Answer]
    """One for each question."""
    answer_s: float
    """Seconds that all answers took."""
    harness: HarnessScores = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second, all answers together; 0 where there are none."""
        return sum(answer.num_tokens for answer in self.answers) / self.answer_s if self.answers else 0.0


@dataclass(frozen=True)
class Evaluation:
    """A model on held-out conversations before training and, unless `after` is None, after it."""

    before: Side
    after: Side | None
    num_conversations: int
    """Held-out conversations that the loss is over."""
    questions: Sequence[Question]
    """Those that were answered."""
    data: Mapping[str, Any]
    """The recipe's data section."""
    settings: Mapping[str, Any]
    """The recipe's evaluation section."""
    versions: Mapping[str, str]

    @property
    def comparisons(self) -> list[Comparison]:
        """Each measure with its intervals, in the order they were measured."""
        if self.after is None:
            return [estimate(measure, rows) for measure, rows in self.before.rows.items()]
        return [compare(measure, rows, self.after.rows[measure]) for measure, rows in self.before.rows.items()]
