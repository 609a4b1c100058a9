"""The file of attempts: read back, cut short, damaged, another rollout's, another process's."""

import json
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.errors import DataError, RecipeError, TrainingError
from seeklet.finetune.rollout.attempt_file import AttemptFile
from tests.finetune.rollout.attempts import made

HEADER = {"format": 1, "seed": 0, "rewards": [("exact", 1.0)]}
ATTEMPTS: dict[int, list[Any]] = {
    0: [made("<think>ä\n\ud800</think>2"), made(right=False, reward=None, rewards={"exact": None})],
    7: [made(finished=False, reasons={"exact": "why"})],
}


def write(path: Path) -> bytes:
    with AttemptFile(path, HEADER).opened() as file:
        file.add(ATTEMPTS)
    return path.read_bytes()


def test_what_was_added_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "attempts.jsonl"
    with AttemptFile(path, HEADER).opened() as file:
        file.add({7: ATTEMPTS[7]})
        file.add(ATTEMPTS)
        assert len(file) == 2 and 7 in file and 1 not in file
        assert {number: file.read(number) for number in (0, 7)} == ATTEMPTS
    with AttemptFile(path, HEADER).opened() as file:
        assert {number: file.read(number) for number in (7, 0)} == ATTEMPTS
    assert path.read_bytes().count(b"\n") == 3, "what is there is not written twice"


def test_cut_off_anywhere_it_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl")
    path = tmp_path / "attempts.jsonl"
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with AttemptFile(path, HEADER).opened() as file:
            assert len(file) == max(0, sum(end <= length for end in ends) - 1)
            file.add(ATTEMPTS)
        assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    lines = write(path).splitlines(keepends=True)
    for damaged in (
        b"{}\n",
        b"not JSON\n",
        b"\n",
        lines[1].replace(b"num_tokens", b"num"),
        b'{"prompt":3,"attempts":[]}\n',
    ):
        path.write_bytes(lines[0] + damaged + lines[2])
        with pytest.raises(DataError) as raised, AttemptFile(path, HEADER).opened():
            pass
        assert str(raised.value) == f"{path}:2: is damaged; delete this line, and its prompt is sampled anew"
    for damaged in (b"[1]\n", b"\xff\n"):
        path.write_bytes(damaged + lines[1])
        with pytest.raises(DataError, match=r"attempts.jsonl:1: is damaged; delete the file, or name another folder"):
            AttemptFile(path, HEADER).opened().__enter__()


def test_attempts_of_another_rollout_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    before = write(path)
    for header, message in (
        ({**HEADER, "seed": 3}, "seed was 0 and is 3"),
        ({**HEADER, "model": "other"}, 'model was null and is "other"'),
        ({"format": 1, "seed": 0}, 'rewards was [["exact", 1.0]] and is null'),
    ):
        with pytest.raises(RecipeError) as raised, AttemptFile(path, header).opened():
            pass
        expected = f"{path} holds attempts of another rollout: {message}; set it back, or name another folder"
        assert str(raised.value) == expected
    assert path.read_bytes() == before


def test_two_processes_cannot_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    with AttemptFile(path, HEADER).opened(), pytest.raises(TrainingError, match="another process samples into"):
        AttemptFile(path, HEADER).opened().__enter__()
    with AttemptFile(path, HEADER).opened() as file:
        assert len(file) == 0
    assert json.loads(path.read_text()) == json.loads(json.dumps(HEADER))
