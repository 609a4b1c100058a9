"""The out folder: refused when it cannot serve, untouched by a run that fails, filled by one that ends."""

from pathlib import Path

import pytest

from seeklet.finetune.demo.out_folder import OutFolderError, filled_when_done


def test_results_replace_those_of_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "my notes.txt").write_text("mine")
    with filled_when_done(tmp_path) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "new.txt").write_text("new")
        (folder / "report.json").write_text('{"new": 1}')
        assert (tmp_path / "model" / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "my notes.txt", "report.json"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new.txt"]
    assert (tmp_path / "report.json").read_text() == '{"new": 1}'


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_does_not_end_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "runs" / "demo"
    with pytest.raises(error), filled_when_done(out) as folder:
        (folder / "report.json").write_text("{}")
        raise error
    assert not out.exists()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(OutFolderError, match="holds files but no report"), filled_when_done(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutFolderError, match="cannot be written"), filled_when_done(tmp_path / "file" / "demo"):
        pass
