"""Prompts from files of several shapes and from reasoning-gym, and what is said where they cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import DataError
from seeklet.finetune.prompts.read import read_prompts
from seeklet.finetune.prompts.settings import PromptSettings


def write(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> str:
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


USER = {"role": "user", "content": "What is 2+2?"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "What is 2+2?", "answer": "4", "level": 1}, {}),
        ({"problem": "What is 2+2?", "solution": "4", "level": 1}, {}),
        ({"prompt": [USER], "target": "4", "level": 1}, {}),
        ({"messages": [USER, {"role": "assistant", "content": "4"}], "level": 1}, {}),
        ({"Frage": "What is 2+2?", "Antwort": "4", "level": 1}, {"prompt": "Frage", "answer": "Antwort"}),
    ],
)
def test_shapes_and_the_columns_for_rewards(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    train, validation = read_prompts(PromptSettings(train=(write(tmp_path, [row]),), columns=columns))
    assert validation == []
    assert (train[0].messages, train[0].columns) == ([USER], {"answer": "4", "level": 1})
    assert str(train[0].source) == f"{tmp_path}/prompts.jsonl:1"


def test_a_system_message_is_put_before_those_without(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Own."}
    file = write(tmp_path, [{"prompt": "Hello"}, {"prompt": [own, USER]}])
    train, _ = read_prompts(PromptSettings(train=(file,), system="Think."))
    assert [prompt.messages[0]["content"] for prompt in train] == ["Think.", "Own."]


def test_nothing_is_there_twice_and_nothing_held_out_is_trained_on(tmp_path: Path) -> None:
    held_out = write(tmp_path, [{"prompt": "what is  2+2?"}, {"prompt": "Other"}], "held_out.jsonl")
    file = write(tmp_path, [{"prompt": f"Question {i}"} for i in range(3)] * 2 + [{"prompt": "What is 2+2?"}])
    train, validation = read_prompts(PromptSettings(train=(file,), validation=(held_out,)))
    assert [prompt.messages[0]["content"] for prompt in train] == ["Question 0", "Question 1", "Question 2"]
    assert len(validation) == 2


def test_the_share_held_out_depends_on_the_question_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}"} for i in range(400)]
    sides = []
    for order in (rows, rows[::-1]):
        train, validation = read_prompts(PromptSettings(train=(write(tmp_path, order),), validation=0.25))
        sides.append({prompt.messages[0]["content"] for prompt in validation})
        assert len(train) + len(validation) == 400
    assert sides[0] == sides[1] and 70 <= len(sides[0]) <= 130


def test_problems_of_reasoning_gym_with_what_their_verifier_needs() -> None:
    settings = PromptSettings(gym={"chain_sum": {"min_terms": 2, "max_terms": 2}, "gcd": {}}, size=20)
    train, _ = read_prompts(settings)
    assert {prompt.columns["task"] for prompt in train} == {"chain_sum", "gcd"}
    first = train[0]
    assert first.columns["entry"]["metadata"]["source_dataset"] == "chain_sum"
    assert first.columns["answer"] == first.columns["entry"]["answer"] and str(first.source) == "gym:chain_sum:1"
    other, _ = read_prompts(PromptSettings(gym={"chain_sum": {"min_terms": 2, "max_terms": 2}}, size=20, seed=1))
    shared = {prompt.key for prompt in train} & {prompt.key for prompt in other}
    assert len(shared) < 5, "neighbouring seeds draw the same problems"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "?"}], '.jsonl:1: has no question; its columns are "text"; allowed:'),
        ([{"prompt": 4}], ".jsonl:1: prompt is neither a text nor messages"),
        ([{"prompt": [{"role": "assistant", "content": "?"}]}], ".jsonl:1: prompt is neither"),
        ([{"prompt": "ok"}, "{"], ".jsonl:2:"),
        ([], "prompts.jsonl: is empty"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(PromptSettings(train=(write(tmp_path, rows),)))
    assert said in str(caught.value)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(PromptSettings(train=(write(tmp_path, [{"text": "?"}] * 50),)))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "… and 30 more"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "prompts has neither train nor gym"),
        ({"gym": {"no_such_task": {}}}, "prompts.gym.no_such_task"),
        ({"gym": {"chain_sum": {"nonsense": 1}}}, "prompts.gym.chain_sum"),
        ({"train": ("x.jsonl",), "columns": {"tests": "t"}}, 'prompts.columns has "tests"'),
        ({"train": ("x.jsonl",), "on_long": "cut"}, 'prompts.on_long is "cut"; allowed: error, skip'),
        ({"train": ("missing.jsonl",)}, "missing.jsonl: no such file"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(PromptSettings(**settings))
    assert said in str(caught.value)
