"""Every malformed file ends in a clear report and exit code 2: the place, the kind and the words are asserted."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seeklet.finetune.data.command import app
from tests.finetune.data.malformed import Malformed
from tests.finetune.data.malformed_files import MALFORMED

# A colourless, wide terminal, so that lines are not wrapped where a test looks for them.
PLAIN_TERMINAL = {"NO_COLOR": "1", "COLUMNS": "250", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def test_the_corpus_has_at_least_sixty_files_of_different_names() -> None:
    assert len({malformed.name for malformed in MALFORMED}) == len(MALFORMED) >= 100


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda malformed: malformed.name)
def test_the_error_is_named_by_file_line_and_kind(malformed: Malformed, tmp_path: Path) -> None:
    if malformed.kind == "permission-denied" and os.geteuid() == 0:
        pytest.skip("root may read every file; see the test below")
    path = malformed.path(tmp_path)
    out = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["check", str(path), *malformed.options, "--json", str(out)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    report = json.loads(out.read_text())
    errors = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert [problem["kind"] for problem in errors] == [malformed.kind]
    first = errors[0]["shown"][0]
    assert (first["file"], first["line"]) == (str(path), malformed.line)
    row = r" \(row \d+\)" if path.suffix == ".json" else ""
    place = re.escape(f"{path}:{malformed.line}" if malformed.line else f"{path}") + f"(?:{row})?: "
    line = next(line for line in result.output.splitlines() if re.match(place, line.strip()))
    assert malformed.words in line
    assert line.isprintable()


@pytest.mark.skipif(os.geteuid() != 0, reason="the test above did this: it takes a user who is not root")
def test_a_file_without_permission_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Folders of pytest are root's own.
        os.chmod(folder, 0o755)
        path = next(malformed for malformed in MALFORMED if malformed.kind == "permission-denied").path(Path(folder))
        os.seteuid(65534)
        try:
            result = CliRunner().invoke(app, ["check", str(path)])
        finally:
            os.seteuid(0)
    assert result.exit_code == 2
    assert f"{path}: may not be read by this user" in result.output


def test_the_command_line_reports_them_all_in_one_go(tmp_path: Path) -> None:
    corpus = [malformed for malformed in MALFORMED if not malformed.options]
    paths = [malformed.path(tmp_path) for malformed in corpus]
    command = [sys.executable, "-m", "seeklet.finetune", "data", "check", "--show", "1000", *map(str, paths)]
    process = subprocess.run(command, env=os.environ | PLAIN_TERMINAL, capture_output=True, encoding="utf-8")
    assert process.returncode == 2
    assert process.stderr == ""
    reported = {re.sub(r" \(row \d+\)$", "", line.strip().split(": ")[0]) for line in process.stdout.splitlines()}
    places = zip(paths, (malformed.line for malformed in corpus), strict=True)
    expected = {f"{path}:{line}" if line else str(path) for path, line in places}
    if os.geteuid() == 0:
        expected -= {str(tmp_path / "forbidden.jsonl")}
    assert expected <= reported
    assert "not fit for training" in process.stdout.splitlines()[-1]
