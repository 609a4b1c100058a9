"""Right results in mathematics, and what must not pass for one."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from seeklet.finetune.errors import RewardError
from seeklet.finetune.rewards.maths import Maths, find_result

EQUAL = [
    ("3", "3"),
    ("3", "3.0"),
    ("3", "x = 3"),
    ("x=3", "3"),
    ("-4", "−4"),
    ("5", "05"),
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("1/2", "0.5"),
    ("1/2", "\\frac12"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"),
    ("1\\frac{1}{2}", "1.5"),
    ("50\\%", "0.5"),
    ("100000000000000000000", "10^{20}"),
    ("0.00012", "1.2 \\times 10^{-4}"),
    ("\\sqrt{2}/2", "\\frac{1}{\\sqrt2}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("\\{1,2\\}", "\\{2, 1\\}"),
    ("[0,1)", "[0, 1)"),
    ("(1,2)", "(1, 2)"),
    ("x>3", "3 < x"),
    ("\\emptyset", "\\{\\}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("12", "12 \\text{ cm}"),
    ("12 cm", "12"),
    ("12 \\text{ meters}", "12 m"),
    ("30^\\circ", "30"),
    ("\\$5", "5"),
    ("East", "\\text{east}"),
    ("B", "\\text{B}"),
    ("(B)", "B"),
    ("B", "\\textbf{(B)}"),
]
DIFFERENT = [
    ("3", "4"),
    ("3", "-3"),
    ("3", "34"),
    ("0.333", "1/3"),
    ("2", "2\\pi"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("x>3", "x<3"),
    ("12 km", "12 cm"),
    ("east", "seat"),
    ("B", "C"),
    ("B", "B, C"),
    ("B", "1B"),
    # Several at once.
    ("3", "3 or 4"),
    ("3", "3, 4"),
    ("3", "\\{3, 4\\}"),
    ("3", "3 \\lor 4"),
    ("3", "3 (or 4)"),
    ("3", "x=3, y=4"),
    # The question instead of the answer.
    ("391", "17*23"),
    ("3", "1+2"),
    ("3", "12/4"),
    ("3", "\\frac{12}{4}"),
    ("8", "2^3"),
    ("3", "4=3"),
    ("3", "any 3"),
    ("12", "1 2"),
    ("3", ""),
]


@pytest.mark.parametrize(("expected", "given"), EQUAL)
def test_equal(expected: str, given: str) -> None:
    assert Maths()(f"<think>hm</think>So \\boxed{{{given}}}.", {"answer": expected}) == 1.0


@pytest.mark.parametrize(("expected", "given"), DIFFERENT)
def test_different(expected: str, given: str) -> None:
    assert Maths()(f"<think>\\boxed{{{expected}}}</think>So \\boxed{{{given}}}.", {"answer": expected}) == 0.0


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("First \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{3", ""),
        ("The answer is 3? No. The answer is $4$.", "4"),
        ("**Answer:** 12\nThank you", "12"),
        ("**Answer: 12**", "12"),
        ("We add.\n\n$$x = 7$$\n", "x = 7"),
        ("It is $3$ or $4$", "It is $3$ or $4$"),
        ("$3$ or $4$", "$3$ or $4$"),
        ("", ""),
    ],
)
def test_the_result_of_an_answer(answer: str, result: str) -> None:
    assert find_result(answer) == result


def test_a_sentence_is_no_result() -> None:
    assert Maths()("3 or 4", {"answer": "3"}) == 0.0
    assert Maths()("$3$ or $4$", {"answer": "3"}) == 0.0
    assert Maths()("There were 3", {"answer": "3"}) == 0.0
    assert Maths()("3", {"answer": "3"}) == 1.0
    assert Maths(boxed=True)("3", {"answer": "3"}) == 0.0
    assert Maths(boxed=True)("\\boxed{3}", {"answer": 3}) == 1.0


def test_a_solution_with_its_box_will_do_as_the_expected_answer() -> None:
    assert Maths(column="solution")("\\boxed{0.5}", {"solution": "We halve it: $\\boxed{\\frac12}$."}) == 1.0


def test_reasoning_without_an_end_has_no_result() -> None:
    assert Maths()("<think>\\boxed{3}", {"answer": "3"}) == 0.0
    assert Maths()("\\boxed{3}", {"answer": "3", "reasoning_opened": True}) == 0.0


def test_time_is_limited_in_any_thread_and_the_next_question_is_answered() -> None:
    """math-verify limits time by signals, which reach the main thread only, and no long multiplication."""
    assert threading.current_thread() is threading.main_thread()
    hard, row = "\\boxed{9^{9^{9^{9}}}}", {"answer": "x+3"}
    maths = Maths(timeout_s=0.5)
    # Started and warm, so that what is measured is the limit.
    assert maths("\\boxed{x+4}", row) == 0.0
    with ThreadPoolExecutor(2) as pool:
        begun = time.monotonic()
        tasks = [pool.submit(maths, hard, row), pool.submit(Maths(timeout_s=60), "\\boxed{3+x}", row)]
        with pytest.raises(RewardError, match=r"^maths_check took longer than 0\.5 s$"):
            tasks[0].result()
        assert time.monotonic() - begun < 30
        assert tasks[1].result() == 1.0
    with pytest.raises(RewardError, match="longer than"):
        maths(hard, row)
    assert Maths(timeout_s=60)("\\boxed{3+x}", row) == 1.0


@pytest.mark.parametrize("result", ["9" * 5000, "(" * 300 + "3" + ")" * 300, "\\frac{" * 100 + "3"])
def test_a_result_of_great_length_or_depth_is_not_looked_at(result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.rewards.maths.ask", lambda *_: pytest.fail("it was looked at"))
    assert Maths()(f"\\boxed{{{result}}}", {"answer": "3"}) == 0.0
    assert Maths()(result, {"answer": "3"}) == 0.0
