"""What a run of the example found, and whether it showed what it is there to show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..evaluation.measures import Estimate
from ..evaluation.reasoning_report import CHANGE, show
from ..evaluation.reasoning_results import ProblemResult, ReasoningReport, change
from ..reasoning import parse


@dataclass(frozen=True)
class Trace:
    """What the teacher wrote about one problem, and how each tokenizer cuts it."""

    asked: str
    text: str
    teacher_tokens: Sequence[str]
    student_tokens: Sequence[str]


@dataclass(frozen=True)
class Example:
    """A held-out problem, and what the student made of it before and after: text, and whether right."""

    asked: str
    before: tuple[str, bool]
    after: tuple[str, bool]


@dataclass(frozen=True)
class Findings:
    """Everything that the report shows."""

    before: ReasoningReport
    after: ReasoningReport
    last_number_right: tuple[float, float]
    """Before and after, the share from 0 to 1 whose answer has the right number as its last, whatever else it says."""
    teacher: Estimate | None
    """Its pass@1 on the same problems, in percent, where the demo has measured it."""
    trace: Trace
    split_tags: str | None
    """A warning that the tags of reasoning are several tokens of the student's."""
    num_traces: int
    epochs: float
    """How often all of them were learned from; below 1 where not all were."""
    shared_problems: Sequence[str]
    """Held-out problems that a trace is about as well."""
    recipe: Mapping[str, Any]
    """Of the training, as plain values."""
    seconds: float
    """Of the training, evaluations left out; of its last part, where it was interrupted."""

    @property
    def gain(self) -> Estimate:
        """By how many points pass@1 rose."""
        difference = change([self.before, self.after], 1)
        assert difference is not None, "both are of the same problems"
        return difference

    def failed_checks(self) -> list[str]:
        """Return in words what did not turn out as it has to."""
        failures = []
        if self.gain.low <= 0:
            failures.append(f"pass@1 did not clearly rise: {show(self.gain, CHANGE)} points")
        if self.shared_problems:
            number = len(self.shared_problems)
            failures.append(f"{number} held-out problems are among the traces: {self.shared_problems[0]!r}")
        return failures


def share_last_number_right(report: ReasoningReport, answers: Mapping[str, str]) -> float:
    """Return the share of problems, from 0 to 1, whose answer has the right number as its last.

    Beside pass@1, which asks for the number alone, it tells what a model can reckon from what form it answers in.
    `answers` are by what is asked.
    """
    return fmean(
        re.findall(r"-?\d+", parse(str(result.example["text"])).answer)[-1:] == [answers.get(_asked(result))]
        for result in report.results
    )


def choose_examples(before: ReasoningReport, after: ReasoningReport) -> list[Example]:
    """Return two problems that were learned and one that is wrong at the end, where there are; the first of each kind.

    Where none was learned, the first problem stands for them.
    """
    examples = [
        Example(_asked(old), _said(old.example), _said(new.example))
        for old, new in zip(before.results, after.results, strict=True)
    ]
    learned = [each for each in examples if each.after[1] and not each.before[1]]
    shown = learned[:2] or examples[:1]
    wrong = [each for each in examples if not each.after[1] and each not in shown]
    return [*shown, *wrong[:1]]


def _asked(result: ProblemResult) -> str:
    return str(result.messages[-1]["content"])


def _said(attempt: Mapping[str, Any]) -> tuple[str, bool]:
    return str(attempt["text"]), bool(attempt["is_right"])
