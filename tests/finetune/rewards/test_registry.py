"""Rewards by their plain names, with their settings checked."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards import KINDS, make_reward
from seeklet.finetune.rewards.length import Overlong
from seeklet.finetune.rewards.own import Own

NEEDED: dict[str, dict[str, Any]] = {
    "regex": {"pattern": "a"},
    "json_schema": {"column": "schema"},
    "language": {"language": "en"},
    "overlong": {"max_tokens": 100, "buffer_tokens": 20},
    "own": {"function": "operator:length_hint"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_there_and_says_its_range(kind: str) -> None:
    reward = make_reward(kind, NEEDED.get(kind))
    assert reward.lowest < reward.highest
    assert isinstance(reward.verifies, bool)
    assert make_reward(kind, NEEDED.get(kind)) == reward


ROW: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "What is 1 + 1?"}],
    "answer": "2",
    "schema": '{"type": "object"}',
    "tests": '["assert add(1, 1) == 2"]',
    "entry": '{"answer": "2", "metadata": {"source_dataset": "chain_sum"}}',
    "completion_ids": [],
}


@pytest.mark.parametrize("completion", ["", "  ", "<think></think>", "<think>"])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"own"}))
def test_an_empty_completion_is_scored_and_never_right(kind: str, completion: str) -> None:
    reward = make_reward(kind, NEEDED.get(kind))
    row = ROW | ({"answer": '{"total": 2}'} if kind == "json_fields" else {})
    score = reward(completion, row)
    assert score is None or reward.lowest <= score <= reward.highest
    assert not reward.verifies or score == reward.lowest


def test_settings_arrive() -> None:
    assert make_reward("overlong", {"max_tokens": 100, "buffer_tokens": 20}) == Overlong(100, 20)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("exat", {}, 'rewards[0].kind: there is no reward "exat"; allowed: maths, exact, '),
        ("exact", {"colum": "a"}, "rewards[0].settings.colum: unknown key; nearest: column"),
        ("exact", {"column": 3}, "rewards[0].settings.column: expected a value, got 3; put it in quotes"),
        (
            "overlong",
            {"max_tokens": 100},
            "rewards[0].settings.buffer_tokens: missing; expected a whole number at least 1",
        ),
        ("repetition", {"size": 0}, "rewards[0].settings.size: expected a whole number at least 1, got 0"),
        ("maths", {"timeout_s": 0}, "rewards[0].settings.timeout_s: expected a number above 0, got 0"),
        ("regex", {"pattern": "("}, "rewards[0].settings: pattern is '(', no regular expression"),
        (
            "own",
            {"function": "nowhere:score"},
            "which cannot be imported (ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("own", {"function": "math:pie"}, 'function is "math:pie", but math has no function "pie"'),
        ("own", {"function": "math"}, 'function is "math"; allowed: package.module:function'),
    ],
)
def test_mistakes_are_named(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_reward(kind, settings, "rewards[0]")
    assert message.replace("a value", "a text") in str(caught.value)


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def score(completion, row, bonus=0):\n    return len(completion) + row['points'] + bonus\n"
    (tmp_path / "my_rewards.py").write_text(code, encoding="utf-8")
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    reward = make_reward("own", {"function": "my_rewards:score", "settings": {"bonus": 100}})
    assert reward("abc", {"points": 10}) == 113
    with pytest.raises(RecipeError, match="ZeroDivisionError"):
        Own("broken_rewards:score")
    assert str(tmp_path) not in sys.path


def test_a_function_that_takes_for_ever_is_left_to_itself() -> None:
    begun = time.monotonic()
    with pytest.raises(RewardError, match=r"^operator:call took longer than 0\.1 s$"):
        # Called with the completion, so with a function here.
        Own("operator:call", timeout_s=0.1)(lambda row: time.sleep(5), {})  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - begun < 4
    assert Own("operator:call", timeout_s=30)(len, {"a": 1}) == 1  # pyright: ignore[reportArgumentType]
    with pytest.raises(ZeroDivisionError):
        Own("operator:call", timeout_s=30)(lambda row: 1 / 0, {})  # pyright: ignore[reportArgumentType]


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    monkeypatch.delitem(sys.modules, "seeklet.finetune.rewards.language", raising=False)
    with pytest.raises(RecipeError, match=r'py3langid.*pip install "seeklet\[reasoning\]"'):
        make_reward("language", {"language": "en"})
