"""Rewards of how a completion looks: format, length, repetition; the latter two also against TRL's own."""

import pytest
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards.format import Format
from seeklet.finetune.rewards.length import Overlong
from seeklet.finetune.rewards.repetition import Repetition


@pytest.mark.parametrize(
    ("completion", "opened", "score", "thinking"),
    [
        ("<think>2 and 2</think>4", False, 1.0, 1.0),
        ("<think></think>4", False, 1.0, 0.0),
        ("<think>2 and 2</think>", False, 0.0, 0.0),
        ("<think>2 and 2", False, 0.0, 0.0),
        ("4", False, 0.0, 0.0),
        ("Well: <think>2 and 2</think>4", False, 0.0, 0.0),
        ("<think>2</think>4</think>4", False, 0.0, 0.0),
        ("2 and 2</think>4", True, 1.0, 1.0),
        ("<think>2 and 2</think>4", True, 0.0, 0.0),
        ("", True, 0.0, 0.0),
    ],
)
def test_format(completion: str, opened: bool, score: float, thinking: float) -> None:
    row = {"reasoning_opened": opened}
    assert Format()(completion, row) == score
    assert Format(think=True)(completion, row) == thinking


@pytest.mark.parametrize(("length", "score"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (150, -1.0)])
def test_overlong_is_dapos_soft_punishment(length: int, score: float) -> None:
    tokens = [7] * length
    assert Overlong(100, 20)("", {"completion_ids": tokens}) == score
    [theirs] = get_soft_overlong_punishment(100, 20)(completion_ids=[tokens])
    assert theirs == pytest.approx(score)


def test_overlong_needs_tokens_and_sensible_limits() -> None:
    with pytest.raises(RewardError, match="completion_ids"):
        Overlong(100, 20)("text", {})
    with pytest.raises(RecipeError, match="0 < buffer_tokens <= max_tokens"):
        Overlong(20, 100)


@pytest.mark.parametrize(
    ("tokens", "size", "score"),
    [
        ([1, 2, 3, 4], 2, 0.0),
        # Three runs, of which one is new.
        ([5, 5, 5, 5], 2, -2 / 3),
        # Runs 12, 23, 31, 12, 23: three of five are new.
        ([1, 2, 3, 1, 2, 3], 2, -2 / 5),
        ([1], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_repetition(tokens: list[int], size: int, score: float) -> None:
    assert Repetition(size)("", {"completion_ids": tokens}) == pytest.approx(score)
    assert Repetition(size)(" ".join(map(str, tokens)), {}) == pytest.approx(score)
    [theirs] = get_repetition_penalty_reward(size, -1.0)(completion_ids=[tokens])
    assert theirs == pytest.approx(score)
