"""The demo's folder: refused when it holds something else, gone on with when interrupted, emptied of a demo only."""

from pathlib import Path

import pytest
import yaml

from seeklet.finetune.demo.out_folder import (
    OutFolderError,
    check_folder,
    goes_on,
    read_state,
    remove_demo,
    write_state,
)
from seeklet.finetune.demo.settings import QUICK, DemoSettings, write_pipeline

SETTINGS = DemoSettings(seed=1)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Return the folder of a demo that was interrupted in its first stage, and a note of the user's."""
    for name in ("data", "grpo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    for name in ("manifest.json", "grpo.yaml", "report.md", "stages.png", "my notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "pipeline.yaml").write_text("text")
    write_state(tmp_path, SETTINGS, ["cold_start", "grpo"])
    return tmp_path


def test_goes_on_with_the_same_settings_only(begun: Path) -> None:
    check_folder(begun)
    assert goes_on(begun, SETTINGS, "text")
    assert not goes_on(begun, SETTINGS, "another text")
    assert not goes_on(begun, DemoSettings(seed=2), "text")
    assert not goes_on(begun, DemoSettings(seed=1, quick=True), "text")
    (begun / "manifest.json").unlink()
    assert not goes_on(begun, SETTINGS, "text")


def test_one_that_is_done_begins_anew(begun: Path) -> None:
    write_state(begun, SETTINGS, ["cold_start", "grpo"], {"seconds": 1.0})
    state = read_state(begun)
    assert state is not None and state["finished"] and state["findings"] == {"seconds": 1.0}
    assert not goes_on(begun, SETTINGS, "text")


def test_only_what_a_demo_wrote_is_removed(begun: Path) -> None:
    assert remove_demo(begun)
    assert [path.name for path in begun.iterdir()] == ["my notes.txt"]
    # And nothing at all where there is no demo.
    assert not remove_demo(begun)
    assert [path.name for path in begun.iterdir()] == ["my notes.txt"]


def test_a_link_is_removed_and_not_what_it_leads_to(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "thesis.tex").write_text("important")
    (begun / "cold_start").symlink_to(elsewhere)
    remove_demo(begun)
    assert (elsewhere / "thesis.tex").exists() and not (begun / "cold_start").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ""])
def test_a_state_that_names_other_folders_is_none(begun: Path, name: str) -> None:
    write_state(begun, SETTINGS, [name])
    assert read_state(begun) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"settings": {}, "finished": false, "stages": [1]}'])
def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path, text: str) -> None:
    check_folder(tmp_path)
    (tmp_path / ".lock").write_text("")
    check_folder(tmp_path)
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(OutFolderError, match="holds files and no demo; name a folder that is new or empty"):
        check_folder(tmp_path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(OutFolderError, match="cannot be used: Not a directory"):
            check_folder(path)


@pytest.mark.parametrize("name", ["plain", "with space, comma: #1", 'quote " \\ and {braces}', "SEED Größe"])
def test_the_pipeline_names_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    for quick in (False, True):
        tree = yaml.safe_load(write_pipeline(DemoSettings(seed=7, quick=quick), tmp_path / name))
        assert tree["output"]["dir"] == str(tmp_path / name)
        assert tree["stages"]["rollout"]["sampling"]["evaluation_sets"] == [str(tmp_path / name / "data/test.jsonl")]
        seeds = {stage["trainer"]["seed"] for stage in tree["stages"].values() if "trainer" in stage}
        assert seeds == {tree["stages"]["rollout"]["sampling"]["seed"]} == {7}


def test_quick_changes_numbers_and_no_stage(tmp_path: Path) -> None:
    whole, quick = (yaml.safe_load(write_pipeline(DemoSettings(quick=each), tmp_path)) for each in (False, True))
    for path, values in QUICK.items():
        section = quick
        for key in path.split("."):
            section = section[key]
        assert section.items() >= values.items()
    assert list(whole["stages"]) == list(quick["stages"])
    assert [each["stage"] for each in whole["stages"].values()] == [each["stage"] for each in quick["stages"].values()]
