"""What keeps an attempt out of the dataset, each reason by itself, in order."""

from typing import Any

import pytest

from seeklet.finetune.attempts import Attempt
from seeklet.finetune.errors import RecipeError
from seeklet.finetune.rollout.filters import OBJECTIONS, find_objection, foreign_share, longest_paragraph
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from tests.finetune.rollout.attempts import made


@pytest.mark.parametrize(
    ("attempt", "settings", "expected"),
    [
        (made(), {}, None),
        (made(finished=False), {}, "cut off"),
        (made(reasons={"exact": "no column"}), {}, "not scored"),
        (made(reward=None), {}, "not scored"),
        (made(right=False), {}, "reward too low"),
        (made(rewards={"exact": 1.0, "trace": 0.4}), {"min_rewards": {"trace": 0.5}}, "reward too low"),
        (made(rewards={"exact": 1.0, "trace": None}), {"min_rewards": {"trace": 0.5}}, "reward too low"),
        (made(rewards={"exact": 1.0, "trace": 0.5}), {"min_rewards": {"trace": 0.5}}, None),
        (made("2"), {}, "malformed"),
        (made("<think>1</think></think>2"), {}, "malformed"),
        (made("2"), {"requires_format": False}, "no reasoning"),
        (made("2"), {"requires_format": False, "requires_reasoning": False}, None),
        (made(""), {"requires_format": False, "requires_reasoning": False}, "no answer"),
        (made("<think> </think>2"), {}, "no reasoning"),
        (made("<think> </think>2"), {"requires_reasoning": False}, None),
        (made(num_tokens=4), {"min_tokens": 5}, "too short"),
        (made(num_tokens=6), {"max_tokens": 5}, "too long"),
        (made(num_tokens=5), {"min_tokens": 5, "max_tokens": 5}, None),
        (made("<think>12345\n\n12</think>2"), {"max_paragraph_characters": 11}, "long paragraph"),
        (made("<think>12345\n\n12</think>2"), {"max_paragraph_characters": 12}, None),
        (made("<think>two два</think>2"), {}, "mixed languages"),
        (made("<think>two два</think>2"), {"max_foreign_share": 0.5}, None),
    ],
)
def test_objection(attempt: Attempt, settings: dict[str, Any], expected: str | None) -> None:
    assert find_objection(attempt, RejectionSamplingSettings(**settings)) == expected
    assert expected is None or expected in OBJECTIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ASCII", 0),
        ("", 0),
        ("12 × 3", 0),
        # 6 Cyrillic letters, 3 Latin ones; the tags and x are none.
        ("<think>дважды two</think> x", 3 / 9),
        # Japanese is written in three scripts at once.
        ("私はかく ニホン", 0),
        ("解 answer", 1 / 7),
        # Variables, Greek, commands and mathematical letters are mathematics.
        (r"设 x 与 λ，\frac{y}{2} 𝒳 ²", 0),
        ("naïve café", 0),
        ("한국 語", 1 / 3),
    ],
)
def test_foreign_share(text: str, expected: float) -> None:
    assert foreign_share(text) == pytest.approx(expected)


def test_longest_paragraph() -> None:
    assert longest_paragraph("") == 0
    assert longest_paragraph("abc\ndef\n  \n gh \n\n\ni") == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ngram": 5}, "min_ngram is 8 and ngram 5; allowed: min_ngram <= ngram"),
        ({"min_tokens": 9, "max_tokens": 8}, "max_tokens is 8 and min_tokens 9; allowed: max_tokens >= min_tokens"),
        (
            {"temperature": 0.0},
            "num_samples is 4 and temperature 0, so all are the same; allowed: num_samples 1, or temperature above 0",
        ),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        RejectionSamplingSettings(**settings)
    assert str(raised.value) == message
