"""The script that runs transformers' own tests: its table, its command line, and what it says when it cannot start."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.run_upstream_tests import NEEDED_FILES, NEEDED_PACKAGES, NOT_PASSED, find_obstacle, find_version

SCRIPT = Path(__file__).with_name("run_upstream_tests.py")
TESTS = """
def test_good(): pass
def test_bad_1(): assert False
class TestIt:
    def test_bad_2(self): assert False
"""
LAUNCH = """
import sys, pytest
from tests.run_upstream_tests import NotPassed
sys.exit(pytest.main(["-c", "pytest.ini", "--noconftest", "-q", "test_it.py"], [NotPassed({table})]))
"""


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder that looks like a source checkout of transformers."""
    for name in (*NEEDED_FILES, "src/transformers/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('__version__ = "9.8.7"\n', encoding="utf-8")
    return tmp_path


def test_table_names_each_test_once_with_a_reason() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    (table,) = (
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NOT_PASSED"
    )
    assert isinstance(table, ast.Dict)
    written = Counter(ast.literal_eval(key) for key in table.keys if key is not None)
    assert {name: count for name, count in written.items() if count > 1} == {}
    assert [name for name in written if not re.fullmatch(r"(\w+::)?test_[a-z0-9_]+\*?", name)] == []
    assert [name for name, reason in NOT_PASSED.items() if not reason.strip() or "\n" in reason] == []


def test_help() -> None:
    done = run_script("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "PATH_TO_TRANSFORMERS" in done.stdout


def test_wrong_path_ends_in_one_line(tmp_path: Path) -> None:
    done = run_script(str(tmp_path / "nowhere"))
    expected = f"{tmp_path / 'nowhere'} is not a source checkout of transformers: it has no {NEEDED_FILES[0]}"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"run_upstream_tests.py: {expected}\n"


@pytest.mark.parametrize("missing", NEEDED_FILES)
def test_missing_file_is_named(checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    assert find_obstacle(checkout) == f"{checkout} is not a source checkout of transformers: it has no {missing}"


def test_missing_package_is_named(checkout: Path) -> None:
    absent = [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    assert find_obstacle(checkout) == (f"the Python package {absent[0]} is not installed" if absent else None)


def test_release_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    assert find_version(checkout) == "9.8.7"
    assert find_version(tmp_path / "nowhere") == "unknown"


@pytest.mark.parametrize(
    ("table", "code", "summary"),
    [
        ({"test_bad_*": "known"}, 0, "1 passed, 2 xfailed"),
        ({"test_bad_1": "known", "TestIt::test_bad_2": "known"}, 0, "1 passed, 2 xfailed"),
        ({"test_bad_1": "known"}, 1, "1 failed, 1 passed, 1 xfailed"),
        ({"test_bad_*": "known", "test_good": "known"}, 1, "1 failed, 2 xfailed"),
        ({"test_bad_*": "known", "test_gone": "known"}, 1, "NOT_PASSED names test_gone, but there is no such test"),
    ],
    ids=["known failures", "known by class", "unknown failure", "known failure passes", "no such test"],
)
def test_table_is_held_to(tmp_path: Path, table: dict[str, str], code: int, summary: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(SCRIPT.parents[1])!r})" + LAUNCH.replace("{table}", repr(table))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert summary in done.stdout
