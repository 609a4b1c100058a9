"""Mistakes in recipes and overrides through the command line: exit code 2, and one line that says where and what."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seeklet.finetune.cli import main
from tests.finetune.conftest import RunHere
from tests.finetune.recipe_contradictions import CONTRADICTIONS
from tests.finetune.recipe_mistakes import EDITS, RECIPE
from tests.finetune.yaml_mistakes import BOMB, FILES, OVERRIDES, SYNTAX

Run = Callable[..., tuple[int, list[str]]]
MISTAKES = EDITS | CONTRADICTIONS | SYNTAX


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `seeklet train r.yaml` on a recipe's bytes, and returns exit code and error lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"question": "a?", "answer": "b"}\n')

    def run(recipe: str | bytes, *overrides: str) -> tuple[int, list[str]]:
        Path("r.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        monkeypatch.setattr(sys, "argv", ["seeklet", "train", "r.yaml", *overrides])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert isinstance(exit.value.code, int)
        return exit.value.code, captured.err.splitlines()

    return run


def replace_once(old: str, new: str) -> str:
    assert RECIPE.count(old) == 1
    return RECIPE.replace(old, new)


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_recipe(old: str, new: str, expected: str | list[str], run: Run) -> None:
    assert run(replace_once(old, new)) == (2, [expected] if isinstance(expected, str) else expected)


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_recipe(name: str, run: Run) -> None:
    content, expected = FILES[name]
    assert run(content) == (2, [expected])


@pytest.mark.parametrize("name", OVERRIDES)
def test_mistake_in_an_override(name: str, run: Run) -> None:
    override, expected = OVERRIDES[name]
    assert run(RECIPE, override) == (2, [f"override '{override}': {expected}"])


def test_aliases_are_refused_before_they_multiply(run: Run) -> None:
    code, lines = run(BOMB)
    assert code == 2
    assert lines[0] == "r.yaml:1: the anchor &a: recipes have none, write each value out"
    assert "r.yaml:2: the alias *a: recipes have none, write the value out" in lines


def test_every_problem_is_told_at_once_and_in_the_order_of_the_file(run: Run) -> None:
    recipe = replace_once("rank: 8", "rnak: 8").replace("stage: sft", "stage: rl").replace("steps\n", "stepz\n")
    # Without a stage that is known, nobody knows whose fields the trainer's are.
    assert run(recipe, "output.dri=x") == (
        2,
        [
            'r.yaml:2: stage: expected one of sft, grpo, distill, distill-topk, got "rl"',
            "r.yaml:12: adapter.rnak: unknown key; nearest: rank",
            "override 'output.dri=x': output.dri: unknown key; nearest: dir",
        ],
    )


@pytest.mark.parametrize(("stage", "command"), [("rollout", "rollout"), ("reasoning", "evaluate")])
def test_a_stage_of_another_command(stage: str, command: str, run: Run) -> None:
    said = f"r.yaml:2: stage: {stage} is not of this command; its own is: seeklet {command} RECIPE"
    # Of the rest nothing is said: it would be measured by what another stage takes.
    assert run(replace_once("stage: sft", f"stage: {stage}")) == (2, [said])


def test_data_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, lines = run(RECIPE, "data.train=nothing.jsonl", "data.validation=[/no/such/file]")
    assert code == 2
    assert lines == [
        "override 'data.train=nothing.jsonl': data.train: nothing.jsonl: No such file or directory "
        f"(relative to the current folder, {tmp_path})",
        "override 'data.validation=[/no/such/file]': data.validation: /no/such/file: No such file or directory",
    ]


def test_output_must_not_be_the_model_nor_in_a_folder_that_is_closed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert run(RECIPE, "model.path=model", "output.dir=./model") == (
        2,
        ["override 'output.dir=./model': output.dir: ./model: is the folder of the model itself"],
    )
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert run(RECIPE, "output.dir=closed/x") == (
        2,
        ["override 'output.dir=closed/x': output.dir: closed/x: closed may not be written"],
    )


def test_one_process_for_a_model_laid_out_over_all_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run(RECIPE, "model.device_map=auto") == (
        2,
        [
            "override 'model.device_map=auto': model.device_map: auto lays one process's model out over all GPUs, and "
            "here are 8; start one (accelerate launch --num_processes 1), or set it to null and let them share the "
            "model (FSDP)"
        ],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing.yaml", "nothing.yaml: cannot be read: No such file or directory"),
        ("sft_modl.yaml", "sft_modl.yaml: cannot be read: No such file or directory; nearest: sft_model.yaml"),
        ("folder", "folder: cannot be read: Is a directory"),
        ("sft_model.yaml/x", "sft_model.yaml/x: cannot be read: Not a directory"),
        ("loop.yaml", "loop.yaml: cannot be read: Too many levels of symbolic links"),
    ],
)
def test_recipe_that_cannot_be_read(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft_model.yaml").write_text(RECIPE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    monkeypatch.setattr(sys, "argv", ["seeklet", "train", name])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"{expected}\n"


def test_no_traceback_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(replace_once("rank: 8", "rnak: 8"))
    said = "r.yaml:12: adapter.rnak: unknown key; nearest: rank\n"
    command = [sys.executable, "-m", "seeklet.finetune", "train", "r.yaml"]
    process = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert (process.returncode, process.stdout, process.stderr) == (2, "", said)
    assert run_here("evaluate", "r.yaml") == (2, "", said)
