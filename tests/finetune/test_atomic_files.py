"""Files replaced in one step: as before, or as wanted, and nothing beside them."""

from pathlib import Path

import pytest

from seeklet.finetune.atomic_files import replaced_file, write_text
from seeklet.finetune.checkpoints import remove_unfinished


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "plot.png"
    target.write_bytes(b"old")
    with replaced_file(target) as beside:
        assert beside.suffix == ".png" and beside.parent == tmp_path
        beside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    write_text(target, "für immer\n")
    with pytest.raises(ZeroDivisionError), replaced_file(target) as beside:
        beside.write_text("half")
        _ = 1 / 0
    assert target.read_bytes() == "für immer\n".encode() and list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.md"
    link.symlink_to(tmp_path / "there" / "file.md")
    write_text(link, "x")
    assert link.is_symlink() and (tmp_path / "there" / "file.md").read_text() == "x"


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    with replaced_file(Path("/dev/null")) as given:
        assert given == Path("/dev/null")
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")


def test_what_a_kill_leaves_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "kept.json", "{}")
    # As if killed: the block neither ends nor raises.
    for name in ("kept.json", "new.png"):
        with replaced_file(tmp_path / name) as beside:
            beside.write_text("half")
            beside.rename(beside.with_name(f"{beside.name}0"))
            beside.touch()
    (tmp_path / "new.png").unlink()
    (tmp_path / "kept.json").write_text("{}")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
