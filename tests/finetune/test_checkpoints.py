"""Checkpoints are whole or not there; which is the last; what is deleted, and that killed work leaves nothing."""

import os
import shutil
from pathlib import Path

import pytest

from seeklet.finetune import checkpoints
from seeklet.finetune.checkpoints import (
    STATE_FILE,
    last_checkpoint,
    list_checkpoints,
    new_checkpoint,
    remove_unfinished,
    rotate,
)


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / STATE_FILE).write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_whole_ones_count_and_they_are_ordered_by_step(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "absent") == [] and last_checkpoint(tmp_path) is None
    make(tmp_path, 8, 20, 100)
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-400.saving-host-1-abcd").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-8", "checkpoint-20", "checkpoint-100"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_a_new_one_appears_when_it_is_done(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path, 7, is_main=True) as folder:
        (folder / STATE_FILE).write_text("7")
        assert list_checkpoints(tmp_path) == []
    assert (tmp_path / "checkpoint-7" / STATE_FILE).read_text() == "7"
    assert names(tmp_path) == ["checkpoint-7"]


def test_one_that_fails_leaves_the_older_of_the_same_step_as_it_was(tmp_path: Path) -> None:
    make(tmp_path, 7)
    with pytest.raises(OSError, match="full"), new_checkpoint(tmp_path, 7, is_main=True) as folder:
        (folder / "model.safetensors").write_text("half of")
        raise OSError("full")
    assert names(tmp_path) == ["checkpoint-7"] and names(tmp_path / "checkpoint-7") == [STATE_FILE]


def test_the_same_step_again_replaces_all_of_it(tmp_path: Path) -> None:
    make(tmp_path, 7)
    (tmp_path / "checkpoint-7" / "old.bin").write_text("old")
    with new_checkpoint(tmp_path, 7, is_main=True) as folder:
        (folder / STATE_FILE).write_text("new")
    assert names(tmp_path / "checkpoint-7") == [STATE_FILE]
    assert (tmp_path / "checkpoint-7" / STATE_FILE).read_text() == "new"


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 10]),
        (2, None, [6, 10]),
        (2, 4, [4, 10]),
        (1, None, [10]),
        # The best and the last are kept even where only one is wanted.
        (1, 4, [4, 10]),
        (3, 2, [2, 6, 10]),
        (2, 10, [6, 10]),
        (9, 4, [2, 4, 6, 10]),
    ],
)
def test_rotation(tmp_path: Path, limit: int | None, best: int | None, left: list[int]) -> None:
    make(tmp_path, 2, 4, 6, 10)
    rotate(tmp_path, limit, best)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_rotation_of_nothing(tmp_path: Path) -> None:
    rotate(tmp_path, 1, None)
    assert names(tmp_path) == []


def test_a_deletion_that_is_cut_short_leaves_no_half_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 2, 4)
    # As if killed before the first file is gone.
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *args, **kwargs: None)
    rotate(tmp_path, 1, None)
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
    assert len(names(tmp_path)) == 2
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-4"]


def test_what_a_killed_save_left_is_removed_whoever_it_was(tmp_path: Path) -> None:
    make(tmp_path, 2)
    for name in (".checkpoint-4.saving-here-999999999-ab12", f".checkpoint-6.saving-elsewhere-{os.getpid()}-ab12"):
        shutil.copytree(tmp_path / "checkpoint-2", tmp_path / name)
    # A model that replaces the files of its folder in one step, saved into the folder that is to become a checkpoint.
    (tmp_path / "..checkpoint-4.saving-here-999999999-ab12.saving-here-999999999-cd34").mkdir()
    (tmp_path / ".adapter.saving-here-999999999-ab12").mkdir()
    for name in (".other", ".saving-grace", "model.saving-here-1-ab12"):
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "absent")
    assert names(tmp_path) == [".other", ".saving-grace", "checkpoint-2", "model.saving-here-1-ab12"]


def test_what_was_about_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    make(tmp_path, 2)
    (tmp_path / "checkpoint-2").rename(tmp_path / ".checkpoint-2.previous-elsewhere-999999999-ab12cd34")
    remove_unfinished(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"] == names(tmp_path)
