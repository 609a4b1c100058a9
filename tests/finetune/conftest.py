"""The command line in this process: a process of its own takes seconds to import the models."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seeklet.finetune import cli

RunHere = Callable[..., tuple[int, str, str]]
# A colourless, wide terminal, so that lines are not wrapped where a test looks for them.
PLAIN_TERMINAL = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Return a function that runs `seeklet` with its arguments, and returns exit code, output and errors."""
    for name, value in PLAIN_TERMINAL.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seeklet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, captured.out, captured.err

    return run
