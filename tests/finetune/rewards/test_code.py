"""Code that passes tests, and code that only pretends to."""

import json
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards import code as code_module
from seeklet.finetune.rewards.code import Code, find_code, is_equal
from seeklet.finetune.rewards.sandbox import REQUIRED_LAYERS, find_layers

pytestmark = pytest.mark.skipif(
    not set(REQUIRED_LAYERS) <= set(find_layers()), reason="this machine offers no seccomp or no Landlock"
)
CALLS = [{"call": "add(1, 2)", "returns": 3}, {"call": "add(-1, 1)", "returns": 0}]
PROGRAM = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 5", "stdout": "10"}]
ASSERTS = ["assert add(1, 2) == 3", "x = add(2, 2)\nassert x == 4"]
ADD = "def add(a, b):\n    return a + b\n"


def fenced(code: str) -> str:
    return f"<think>```python\n1/0\n```</think>Here it is:\n```python\n{code}\n```\nDone."


def score(code: str, tests: Any, **settings: Any) -> float:
    return Code(**settings)(fenced(code), {"tests": tests})


def test_all_that_is_right() -> None:
    assert score(ADD, CALLS) == 1.0
    assert score(ADD, ASSERTS) == 1.0
    assert score("a, b = map(int, input().split())\nprint(a + b, end='  \\n\\n')", PROGRAM) == 1.0
    assert score("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", json.dumps(PROGRAM)) == 1.0


@pytest.mark.parametrize(
    ("code", "tests", "partly"),
    [
        ("def add(a, b):\n    return abs(a + b) + (a < 0)", CALLS, 0.5),
        ("def add(a, b):\n    return 3", ASSERTS, 0.5),
        ("print(3)", PROGRAM, 0.5),
        ("def add(a, b):\n    return a - b", CALLS, 0.0),
        ("def add(a, b:", CALLS, 0.0),
        ("def plus(a, b):\n    return a + b", CALLS, 0.0),
        ("def add(a, b):\n    return str(a + b)", CALLS, 0.0),
        # Right, but it ends in an error.
        ("a, b = map(int, input().split())\nprint(a + b)\n1/0", PROGRAM, 0.0),
    ],
)
def test_what_is_not_all_right(code: str, tests: Any, partly: float) -> None:
    assert score(code, tests) == 0.0
    assert score(code, tests, partial=True) == partly


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import sys\nsys.exit(0)",
        "import atexit\natexit.register(print, 3)",
        # A report of its own, on every file that may be the one.
        'import os\nfor file in range(3, 20):\n    try:\n        os.write(file, b\'{"token": "", "results": '
        '[{"value": true}, {"value": true}]}\\n\')\n    except OSError:\n        pass\nos._exit(0)',
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()",
        "while True:\n    pass",
    ],
)
def test_tricks_that_do_not_pass(code: str) -> None:
    assert score(code, CALLS, cpu_s=1) == 0.0
    assert score(code, PROGRAM, cpu_s=1) == 0.0


def test_ending_early_passes_no_assertion() -> None:
    assert score("import os\nos._exit(0)", ["assert False"]) == 0.0
    assert score("def add(a, b):\n    raise SystemExit(0)", ASSERTS) == 0.0


def test_what_is_expected_never_enters_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    run_tests, run_program = code_module.run_tests, code_module.run_program
    monkeypatch.setattr(code_module, "run_tests", lambda *a, **k: seen.append((a, k)) or run_tests(*a, **k))
    monkeypatch.setattr(code_module, "run_program", lambda *a, **k: seen.append((a, k)) or run_program(*a, **k))
    score(ADD, [{"call": "add(40000, 2000)", "returns": 42000}])
    score("print(42000)", [{"stdin": "", "stdout": "42000"}])
    assert len(seen) == 2
    assert "42000" not in repr(seen[0])
    assert repr(seen[1]).count("42000") == 1


def test_values_are_compared_as_json_has_them() -> None:
    code = "def pair():\n    return (1, {'a': [True, None, 0.1 + 0.2]})\ndef odd():\n    return {1, 2}"
    assert score(code, [{"call": "pair()", "returns": [1, {"a": [True, None, 0.3]}]}]) == 1.0
    assert score(code, [{"call": "pair()", "returns": [1, {"a": [1, None, 0.3]}]}]) == 0.0
    assert score(code, [{"call": "odd()", "returns": [1, 2]}]) == 0.0
    assert is_equal(10**20, 10**20 + 1) is False
    assert is_equal([1, 2], [1, 2, 3]) is False
    assert is_equal("1", 1) is False


def test_installed_packages_are_for_who_asks_for_them() -> None:
    code = "import numpy\ndef add(a, b):\n    return int(numpy.add(a, b))"
    assert score(code, CALLS) == 0.0
    assert score(code, CALLS, packages=True, memory_mib=2048) == 1.0


def test_the_last_block_counts() -> None:
    assert find_code("```python\na\n```\nNo:\n```\nb\n```\n") == "b\n"
    assert find_code("print(1)") == "print(1)"
    assert Code()("", {"tests": CALLS}) == 0.0
    assert Code()(f"<think>{ADD}", {"tests": CALLS}) == 0.0


@pytest.mark.parametrize(
    "tests",
    [[], "[", "[]", 3, [1], ["assert True", {"call": "f()", "returns": 1}], [{"stdin": "1"}], [{"call": "f()"}]],
)
def test_a_row_without_tests_cannot_be_scored(tests: Any) -> None:
    with pytest.raises(RewardError, match='"tests"'):
        score(ADD, tests)


def test_a_machine_without_protection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_module, "find_layers", lambda: ("limits", "seccomp"))
    with pytest.raises(RecipeError, match=r"do_without is \[\], and this machine does not offer landlock to keep"):
        Code()
    assert Code(do_without=("landlock",)).do_without == ("landlock",)
