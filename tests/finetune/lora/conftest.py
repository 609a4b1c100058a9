"""The command line in this process: a process of its own takes seconds to import the models."""

import sys
from pathlib import Path

import pytest

from seeklet.finetune import cli
from tests.finetune.lora.adapters import RunHere


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Return a function that runs the command line, and returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seeklet", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert isinstance(exit.value.code, int)
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run
