"""The reward of a right result in mathematics: LaTeX or plain, numbers, fractions, sets, intervals, formulas, units."""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar

from ..limits import ABOVE_ZERO
from .completion import Row, answer_of, read_text
from .verifier import ask

# The last one of a text counts.
ANCHOR = re.compile(r"\banswer(?: is|:)[\s*]*", re.IGNORECASE)
BOXES = re.compile(r"\\f?boxed\s*\{")
# What surrounds an expression: Markdown's emphasis, LaTeX's signs of a formula, a full stop.
AROUND = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("", "."))
# Far beyond any result; many digits or brackets alone can keep a library busy.
MAX_CHARACTERS, MAX_NESTING = 1000, 20


@dataclass(frozen=True)
class Maths:
    """1 where the answer's result equals that of a column, as math-verify has it; else 0.

    One result counts: the last `\\boxed{…}` behind the reasoning; where there is none (and `boxed` does not ask for
    it), what follows the last "answer is" or "answer:" in its line; else the last line, if that is nothing but an
    expression. So "3 or 4" is not 3, wherever it stands. Where a plain number is expected, the answer must be one too:
    `17*23` is no answer to "what is 17*23?", nor 12/4 to one whose answer is 3. Of units, only known ones that differ
    count as wrong. Words (`east`) are compared as text, whatever the case, and so are letters to choose from, `(B)`.

    The work is done in another process that is ended when it takes too long, so this is safe in any thread, and no
    expression can use up the time or memory of the trainer; the sample is then one that cannot be scored.
    """

    column: str = "answer"
    boxed: bool = False
    timeout_s: Annotated[float, ABOVE_ZERO] = 5.0

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True
    # Time passes in another process: samples are scored side by side.
    waits: ClassVar[bool] = True

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks the column, or the comparison took too long or too much memory.
        """
        expected, given = read_text(row, self.column), find_result(answer_of(completion, row), self.boxed)
        if not given or len(given) > MAX_CHARACTERS or _nesting(given) > MAX_NESTING:
            return 0.0
        boxed = last_box(expected)
        request = {"expected": _bare(expected if boxed is None else boxed), "given": given}
        return float(request["expected"] == given or ask("maths_check", request, self.timeout_s))


def find_result(answer: str, boxed: bool = False) -> str:
    """Return the expression that an answer ends in, "" for none; see `Maths`.

    >>> find_result("Half of it is \\\\boxed{\\\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    >>> find_result("We add.\\n**Answer:** $12$.")
    '12'
    """
    if boxed or BOXES.search(answer):
        return _bare(last_box(answer) or "")
    if anchors := list(ANCHOR.finditer(answer)):
        return _bare(answer[anchors[-1].end() :].split("\n")[0].replace("**", ""))
    lines = [line for line in answer.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else ""


def last_box(text: str) -> str | None:
    """Return what is in the last `\\boxed{…}` of a text, with braces in pairs; None for no box, or one left open."""
    found = list(BOXES.finditer(text))
    if not found:
        return None
    depth, start = 1, found[-1].end()
    for index in range(start, len(text)):
        # A brace that is written, as of a set, has a backslash.
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[start:index]
    return None


def _nesting(text: str) -> int:
    """Return how many brackets are open at once, whatever their kind and whether they are ever closed."""
    depths = accumulate((character in "([{") - (character in ")]}") for character in text)
    return max(depths, default=0)


def _bare(text: str) -> str:
    text, before = text.strip(), None
    while text != before:
        before = text
        for opening, closing in AROUND:
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                inside = text[len(opening) : len(text) - len(closing)].strip()
                # Not the first and last sign of two formulas.
                text = inside if not opening or opening not in inside else text
    return text
