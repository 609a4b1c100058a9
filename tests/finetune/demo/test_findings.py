"""What a run must hold to end well: among it, that training raised accuracy, where it was given the steps for it."""

from typing import Any

import pytest

from seeklet.finetune.demo.evaluate import Accuracy
from seeklet.finetune.demo.findings import DemoSettings, Findings
from seeklet.finetune.demo.run import choose_examples
from seeklet.finetune.demo.task import ChainSums
from seeklet.finetune.demo.train import History, StepRecord, TrainSettings, ValidationRecord

LINE = "training did not clearly raise accuracy: 4 of 512 test problems before, {} of 512 after"
STEP = StepRecord(1, 1.0, 1.0, 1.0, 1.0, 1e-3, [])


def findings(after: int, steps: int, validated: int) -> Findings:
    """Return the findings of a run of `steps` steps whose other checks hold; 4 of the test problems solved before."""
    given: dict[str, Any] = dict.fromkeys(Findings.__dataclass_fields__)
    given |= {
        "training": TrainSettings(steps=steps, seed=0),
        "before": Accuracy(4, 512),
        "after": Accuracy(after, 512),
        "history": History([STEP] * steps, [ValidationRecord(steps, Accuracy(validated, 100))]),
        "drafts": HoldsAll(),
        "reload": HoldsAll(),
    }
    return Findings(**given)


class HoldsAll:
    """In place of what the other checks look at."""

    identical_tokens = passed = True


# With 95 % confidence 4 of 512 are at most 1.99 %, 16 are at least 1.93 %, and 17 at least 2.08 %.
@pytest.mark.parametrize(
    ("after", "steps", "validated", "lines"),
    [
        (4, DemoSettings.steps, 1, [LINE.format(4)]),
        (16, DemoSettings.steps, 1, [LINE.format(16)]),
        (17, DemoSettings.steps, 1, []),
        (4, 300, 97, [LINE.format(4)]),
        (490, 300, 97, []),
        (4, 50, 1, []),
        (4, DemoSettings.steps - 1, 96, []),
    ],
)
def test_accuracy_must_rise_where_training_was_full(after: int, steps: int, validated: int, lines: list[str]) -> None:
    assert findings(after, steps, validated).failed_checks() == lines


def test_examples_are_the_first_two_solved_and_the_first_wrong() -> None:
    task = ChainSums(seed=0, num_test=6, num_validation=0)
    right = [problem.solution for problem in task.test]
    after = ["", "<think>", right[2], right[3], right[4], ""]
    before = [str(index) for index in range(6)]
    examples = choose_examples(task, before, after)
    assert [(e.prompt, e.answer, e.before, e.after, e.solved_after) for e in examples] == [
        (task.test[i].prompt, task.test[i].entry["answer"], str(i), after[i], i in (2, 3)) for i in (2, 3, 0)
    ]
