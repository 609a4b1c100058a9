"""A plugin of pytest: what came of each test, a line each, written when it is over and not when all are.

python -m pytest -p benchmarks.kernels.outcomes --outcomes FILE ...
"""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--outcomes", type=Path, help="where what came of each test is written")


def pytest_configure(config: pytest.Config) -> None:
    """Write from the process that hears of all tests, which has no workerinput."""
    file = config.getoption("--outcomes")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(file))


class _Writer:
    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report)

    def _write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{report.outcome} {report.nodeid}\n")


def read(file: Path, group_of: Callable[[str], str | None]) -> dict[str, set[str]]:
    """Return the outcomes ("passed", "failed") of each group of test files, by the file's path."""
    found: dict[str, set[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        outcome, _, test = line.partition(" ")
        group = group_of(test.partition("::")[0])
        if group is not None:
            found.setdefault(group, set()).add(outcome)
    return found
