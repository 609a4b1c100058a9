"""Which attempts at one prompt are kept, worked out by hand."""

from typing import Any

import pytest

from seeklet.finetune.data.rows import Source
from seeklet.finetune.rollout.choice import attempt_key, judge, share_right
from seeklet.finetune.rollout.overlap import EvaluationIndex
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from tests.finetune.rollout.attempts import made

NOTHING = EvaluationIndex([])


def thought(reasoning: str, **fields: Any) -> Any:
    return made(f"<think>{reasoning}</think>2", **fields)


def judged(attempts: list[Any], **settings: Any) -> list[str | None]:
    return judge(attempts, RejectionSamplingSettings(**settings), NOTHING)


def test_what_says_the_same_is_kept_once() -> None:
    """Letter case and blank space aside; a wrong one before it does not count."""
    attempts = [
        thought("A b", right=False),
        thought("A b"),
        thought("c"),
        thought("a  B"),
        made("<think>a b</think> 2 "),
    ]
    assert judged(attempts) == ["reward too low", None, None, "duplicate", "duplicate"]
    assert attempt_key(made("<think>a</think>b")) != attempt_key(made("<think></think>ab"))


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("first", [None, "reward too low", None, "enough of the prompt", "enough of the prompt"]),
        ("shortest", ["enough of the prompt", "reward too low", None, "enough of the prompt", None]),
    ],
)
def test_so_many_of_a_prompt(prefer: Any, expected: list[str | None]) -> None:
    lengths = [9, 1, 4, 7, 2]
    attempts = [thought(str(i), num_tokens=length, right=i != 1) for i, length in enumerate(lengths)]
    assert judged(attempts, max_per_prompt=2, prefer=prefer) == expected


@pytest.mark.parametrize(
    ("always", "expected"),
    [("keep", [None, None, None]), ("one", [None, *["always solved"] * 2]), ("drop", ["always solved"] * 3)],
)
def test_prompts_that_are_always_solved(always: Any, expected: list[str | None]) -> None:
    attempts = [thought(str(i)) for i in range(3)]
    assert judged(attempts, always_solved=always) == expected
    attempts[1] = thought("1", right=False)
    assert judged(attempts, always_solved=always) == [None, "reward too low", None]


def test_one_attempt_alone_does_not_say_that_a_prompt_is_always_solved() -> None:
    assert judged([thought("1")], always_solved="drop") == [None]


def test_a_right_attempt_of_wrong_form_counts_as_solved_and_is_not_kept() -> None:
    attempts = [made("2"), made("3", right=False)]
    assert share_right(attempts) == 0.5
    assert judged(attempts) == ["malformed", "reward too low"]


def test_completions_that_repeat_an_evaluation_text() -> None:
    index = EvaluationIndex([("one two three four five six seven eight nine", Source("test.jsonl", 1))], 8, 4)
    attempts = [
        thought("so: two three four five six seven eight nine"),
        thought("three four five six seven eight nine"),
    ]
    assert judge(attempts, RejectionSamplingSettings(), index) == ["in an evaluation set", None]
