"""The command itself: help without the models, what it says when something is missing, and who of many speaks."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from seeklet import __version__
from seeklet.finetune import cli
from tests.finetune.conftest import PLAIN_TERMINAL, RunHere

ROOT = Path(__file__).resolve().parents[2]
# What `seeklet` runs: finetune/cli under a name that imports nothing of seeklet.
AS_INSTALLED = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("seeklet_cli", {str(ROOT / "finetune" / "cli" / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["seeklet_cli"] = module
spec.loader.exec_module(module)
"""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | PLAIN_TERMINAL | environment,
        capture_output=True,
        encoding="utf-8",
    )


def test_the_command_is_the_one_that_brings_no_models() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"]["seeklet"] == "seeklet_cli:main"
    assert project["tool"]["setuptools"]["package-dir"]["seeklet_cli"] == "finetune/cli"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_takes_less_than_a_second_and_names_every_command(arguments: tuple[str, ...]) -> None:
    report = """
try:
    module.main()
except SystemExit:
    seconds = time.process_time()
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert seconds < 1, f"{seconds:.2f} s of CPU time"
    assert not loaded & {"torch", "transformers", "seeklet", "trl"}, loaded
"""
    process = run_python(AS_INSTALLED + report, *arguments)
    assert process.returncode == 0, process.stderr
    shown = process.stdout + process.stderr
    assert "seeklet data check support.jsonl" in shown
    for name, command in cli.COMMANDS.items():
        assert name in shown
        assert command.summary in shown


def test_version() -> None:
    process = run_python(AS_INSTALLED + "module.main()", "--version")
    assert (process.returncode, process.stdout) == (0, f"seeklet {__version__}\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_teaches_by_example(command: str, run_here: RunHere) -> None:
    code, output, errors = run_here(command, *(("check",) if command == "data" else ()), "--help")
    assert code == 0, errors
    assert f"seeklet {command} " in output.split("Usage:")[1].split("\n", 1)[1].split("Arguments")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "No such command 'trian'. Did you mean 'train'?"),
        (("train",), "Missing argument 'RECIPE'"),
        (("train", "r.yaml", "--dryrun"), "No such option: --dryrun"),
    ],
)
def test_a_mistake_in_the_command_line(arguments: tuple[str, ...], said: str, run_here: RunHere) -> None:
    code, _, errors = run_here(*arguments)
    assert code == 2
    assert said.lower() in errors.lower()


def test_a_package_that_is_not_installed() -> None:
    code = "import sys; sys.modules['trl'] = None; from seeklet.finetune.cli import main; main()"
    process = run_python(code, "train", "recipes/sft_smollm2-135m_support_cpu.yaml")
    assert process.returncode == 2
    assert process.stderr == (
        "seeklet: this needs the package trl, which is not installed: pip install 'seeklet[train]'\n"
    )


def test_without_the_package_for_commands_there_is_still_a_line() -> None:
    process = run_python("import sys; sys.modules['typer'] = None" + AS_INSTALLED + "module.main()")
    assert process.returncode == 2
    assert process.stderr == (
        "seeklet: its commands need packages that are not installed: pip install 'seeklet[train]'\n"
    )


def test_of_several_processes_the_first_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stage: stf\n")
    monkeypatch.setenv("RANK", "0")
    code, _, errors = run_here("train", str(recipe))
    assert code == 2
    assert "stage: expected " in errors
    monkeypatch.setenv("RANK", "1")
    assert run_here("train", str(recipe)) == (2, "", "")


def test_what_the_system_refuses_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def refuse(arguments: list[str]) -> None:
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr(cli, "build_app", refuse)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == "seeklet: runs/x: Permission denied\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "build_app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()
