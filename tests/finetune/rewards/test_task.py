"""reasoning-gym's tasks, scored by their own verifiers."""

import json

import pytest
import reasoning_gym

from seeklet.finetune.errors import RewardError
from seeklet.finetune.rewards.task import ReasoningGym


def make_entry(task: str) -> dict:
    return reasoning_gym.create_dataset(task, size=1, seed=1)[0]


def test_full_marks_only() -> None:
    entry = make_entry("chain_sum")
    assert entry["answer"] == "-4"
    reward = ReasoningGym()
    assert reward("<think>4 - 1 - 7</think>-4", {"entry": entry}) == 1.0
    assert reward("<think>-4</think>-5", {"entry": entry}) == 0.0
    assert reward("<think>-4", {"entry": entry}) == 0.0
    assert reward("-4", {"entry": json.dumps(entry)}) == 1.0


def test_parts_of_the_marks_are_for_who_asks_for_them() -> None:
    entry = make_entry("family_relationships")
    said = f"It is {entry['answer']}"
    assert ReasoningGym()(said, {"entry": entry}) == 0.0
    assert ReasoningGym(least=0.1)(entry["answer"], {"entry": entry}) == 1.0


def test_what_is_no_entry_is_named() -> None:
    for entry, reason in (
        ("{", "is no JSON"),
        ({"answer": "1"}, "metadata.source_dataset"),
        ([1], "metadata.source_dataset"),
        ({"answer": "1", "metadata": {"source_dataset": "nonsense"}}, "nonsense"),
        ({"answer": "1", "metadata": {"source_dataset": "chain_sum", "what": object()}}, "JSON has no words for"),
    ):
        with pytest.raises(RewardError, match=reason):
            ReasoningGym()("1", {"entry": entry})
