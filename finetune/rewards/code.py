"""The reward of code that passes tests, run in a sandbox."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ..errors import RecipeError, RewardError
from ..limits import ABOVE_ZERO, POSITIVE
from .completion import Row, answer_of, read_column
from .sandbox import REQUIRED_LAYERS, Limits, Outcome, find_layers, run_program, run_tests

FENCED = re.compile(r"^```(?:python3?|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)
Kind = Literal["program", "calls", "asserts"]


@dataclass(frozen=True)
class Code:
    """1 where the answer's Python passes every test of a column, or the share that it passes where `partial`; else 0.

    The last fenced block behind the reasoning is the code; where there is none, the whole answer. A row's tests, a list
    or its JSON, are all of one of three kinds:

    - `{"stdin": "1 2", "stdout": "3"}`: a program, run once for each; blank space at line ends does not count;
    - `{"call": "add(1, 2)", "returns": 3}`: a function's value, as JSON has it, so a tuple is a list;
    - `"assert add(1, 2) == 3"`: any statements.

    Of the first two, what is expected never enters the sandbox, so no code can pass without computing it. Assertions
    run beside the code: ending early does not pass them, but code that goes looking for the test could. Prefer the
    others. See `sandbox` for what the code can and cannot do, on which machines.
    """

    column: str = "tests"
    partial: bool = False
    # What is installed can be imported, not Python's own library alone.
    packages: bool = False
    cpu_s: Annotated[int, POSITIVE] = 5
    timeout_s: Annotated[float, ABOVE_ZERO] = 15.0
    memory_mib: Annotated[int, POSITIVE] = 512
    # Layers of protection to do without, where the machine itself holds nothing of value.
    do_without: tuple[Literal["seccomp", "landlock"], ...] = ()

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def __post_init__(self):
        if missing := [layer for layer in self._required if layer not in find_layers()]:
            raise RecipeError(
                f"do_without is {list(self.do_without)}, and this machine does not offer {', '.join(missing)} to keep "
                "a model's code from harm: run on Linux 5.13 or newer (x86_64 or aarch64) with Landlock and seccomp "
                "allowed, or, on a machine that holds nothing of value, name what to do without"
            )

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks tests, or has such as are none.
        """
        kind, tests = read_tests(read_column(row, self.column), self.column)
        code = find_code(answer_of(completion, row))
        if not code.strip():
            return 0.0
        passed = self._run_programs(code, tests) if kind == "program" else self._run_tests(code, kind, tests)
        return sum(passed) / len(tests) if self.partial else float(len(passed) == len(tests) and all(passed))

    @property
    def _required(self) -> list[Any]:
        return [layer for layer in REQUIRED_LAYERS if layer not in self.do_without]

    def _limits(self) -> Limits:
        return Limits(cpu_s=self.cpu_s, timeout_s=self.timeout_s, memory_mib=self.memory_mib)

    def _run_programs(self, code: str, tests: Sequence[Mapping[str, Any]]) -> list[bool]:
        passed = []
        for test in tests:
            outcome = run_program(code, test["stdin"], self._limits(), packages=self.packages, required=self._required)
            _check_was_run(outcome)
            passed.append(outcome.status == "finished" and _lines(outcome.stdout) == _lines(test["stdout"]))
            if not passed[-1] and not self.partial:
                break
        return passed

    def _run_tests(self, code: str, kind: Literal["calls", "asserts"], tests: Sequence[Any]) -> list[bool]:
        sources = [test["call"] for test in tests] if kind == "calls" else list(tests)
        outcome = run_tests(code, kind, sources, self._limits(), packages=self.packages, required=self._required)
        _check_was_run(outcome)
        if outcome.results is None or len(outcome.results) != len(tests):
            return []
        if kind == "asserts":
            return [result.get("value") is True for result in outcome.results]
        pairs = zip(outcome.results, tests, strict=True)
        return ["value" in result and is_equal(result["value"], test["returns"]) for result, test in pairs]


def find_code(answer: str) -> str:
    """Return the last fenced block of an answer, or all of it where there is none."""
    blocks = FENCED.findall(answer)
    return blocks[-1] if blocks else answer


def read_tests(value: Any, column: str) -> tuple[Kind, list[Any]]:
    """Return which kind a row's tests are, and the tests.

    Raises:
        RewardError: they are none, or of several kinds.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RewardError(f'"{column}" is no JSON: {error}') from None
    if isinstance(value, list) and value:
        if all(isinstance(test, str) for test in value):
            return "asserts", value
        if all(isinstance(test, Mapping) for test in value):
            if all(isinstance(test.get("stdin"), str) and isinstance(test.get("stdout"), str) for test in value):
                return "program", value
            if all(isinstance(test.get("call"), str) and "returns" in test for test in value):
                return "calls", value
    raise RewardError(
        f'"{column}" has no tests; allowed: a list, all of it {{"stdin": text, "stdout": text}}, or all {{"call": '
        'expression, "returns": value}, or all texts with assertions'
    )


def is_equal(given: Any, expected: Any) -> bool:
    """Return whether two values of JSON are equal; a fraction within the ninth digit, true and false no numbers."""
    if isinstance(given, bool) or isinstance(expected, bool):
        return given is expected
    if isinstance(given, int | float) and isinstance(expected, int | float):
        both_whole = isinstance(given, int) and isinstance(expected, int)
        return given == expected if both_whole else math.isclose(given, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(given, list) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(is_equal, given, expected))
    if isinstance(given, dict) and isinstance(expected, Mapping):
        return given.keys() == expected.keys() and all(is_equal(given[key], expected[key]) for key in given)
    return type(given) is type(expected) and given == expected


def _check_was_run(outcome: Outcome) -> None:
    if outcome.status == "refused":
        raise RewardError(f"the code was not run: this machine offers only {', '.join(outcome.layers)}")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
