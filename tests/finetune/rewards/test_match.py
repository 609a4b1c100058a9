"""Answers that must be a known text."""

import time

import pytest

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards.match import Exact, Matches


@pytest.mark.parametrize(
    ("completion", "expected", "score"),
    [
        ("<think>Berlin?</think> Paris ", "Paris", 1.0),
        # What is only in the reasoning is not said.
        ("<think>Paris</think>Berlin", "Paris", 0.0),
        ("<think>Paris", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("paris", "Paris", 0.0),
        ("The answer is Paris", "Paris", 0.0),
        ("two\n  words", "two words", 1.0),
        ("Lyon", ["Paris", "Lyon"], 1.0),
        ("12", 12, 1.0),
        # é as one character, and as e with an accent.
        ("caf\u0065\u0301", "caf\u00e9", 1.0),
    ],
)
def test_exact(completion: str, expected: object, score: float) -> None:
    assert Exact()(completion, {"answer": expected}) == score


def test_exact_whatever_the_case() -> None:
    assert Exact(ignore_case=True)("STRASSE", {"answer": "Straße"}) == 1.0


def test_reasoning_that_the_prompt_opened_and_nothing_closed_is_no_answer() -> None:
    assert Exact()("Paris", {"answer": "Paris", "reasoning_opened": True}) == 0.0
    assert Exact()("hm</think>Paris", {"answer": "Paris", "reasoning_opened": True}) == 1.0


@pytest.mark.parametrize("value", [None, "", "  ", True, {"a": 1}])
def test_a_row_without_an_answer_cannot_be_scored(value: object) -> None:
    with pytest.raises(RewardError, match='"answer"'):
        Exact()("Paris", {"answer": value, "question": "?"})


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(RewardError) as caught:
        Exact(column="solution")("Paris", {"answer": "Paris", "question": "?", "empty": None})
    assert str(caught.value) == 'the row has no "solution"; columns with a value: answer, question'


@pytest.mark.parametrize(
    ("completion", "score"),
    [("<think>x</think>AB-12", 1.0), ("AB-12 or CD-34", 0.0), ("ab-12", 0.0), ("<think>AB-12</think>no", 0.0)],
)
def test_a_pattern_must_match_the_whole_answer(completion: str, score: float) -> None:
    assert Matches(r"[A-Z]{2}-\d{2}")(completion, {}) == score


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("Dear Sir,\nTotal: 12.50\nYours", 1.0),
        # The last one counts, so naming several is no way to be right.
        ("Total: 12.50\nTotal: 13.00", 0.0),
        ("Total: 13.00\nTotal: 12.50", 1.0),
        ("12.50", 0.0),
    ],
)
def test_a_group_of_the_last_match_must_be_the_columns_text(completion: str, score: float) -> None:
    assert Matches(r"Total: (\S+)", column="total")(completion, {"total": "12.50"}) == score


def test_a_pattern_that_takes_for_ever_is_stopped() -> None:
    begun = time.monotonic()
    with pytest.raises(RewardError, match=r"longer than 0\.2 s"):
        Matches(r"(a|aa)+$", timeout_s=0.2)("a" * 200 + "b", {})
    assert time.monotonic() - begun < 10


def test_what_is_no_pattern_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match=r"pattern is '\(', no regular expression"):
        Matches("(")
