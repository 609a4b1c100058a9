"""Overlap of texts with evaluation sets, by hand."""

import pytest

from seeklet.finetune.data.rows import Source
from seeklet.finetune.rollout.overlap import EvaluationIndex, words

LONG = "a b c d e f g h i j k l m n o p"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 3-1, well-known?", "what is 3 - 1 well known"),
        ("4-1+7*(2/3)", "4 - 1 + 7 * 2 / 3"),
        ("-x² = Ｙ", "x2 = y"),
        ("Straße\nÉCOLE", "strasse école"),
        ("…!?", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


def index(*texts: str, ngram: int = 5, min_ngram: int = 3) -> EvaluationIndex:
    return EvaluationIndex([(text, Source("test.jsonl", line)) for line, text in enumerate(texts, 1)], ngram, min_ngram)


@pytest.mark.parametrize(
    ("evaluation", "text", "overlaps"),
    [
        # Five words in a row, whatever is around them, and however they are written.
        (LONG, "x A, B. c\nd e y", True),
        (LONG, "x l m n o p", True),
        # Four in a row are too few.
        (LONG, "x a b c d y f g h i z", False),
        (LONG, "a b c d x e", False),
        # A text of four words that is all in the evaluation text; not one of two.
        (LONG, "c d e f", True),
        (LONG, "c d", False),
        # An evaluation text of four words, all in the text; one of two only where it is the same.
        ("a b c d", "x a b c d y z", True),
        ("a b c d", "x a b c y d z", False),
        ("a b", "x a b y", False),
        ("a b", "A b!", True),
        ("1+2", "1-2", False),
        ("1+2", "1 + 2", True),
        ("", "…", False),
    ],
)
def test_overlap(evaluation: str, text: str, overlaps: bool) -> None:
    found = index("other words altogether that nothing shares", evaluation).find(text)
    assert found == (Source("test.jsonl", 2) if overlaps else None)


def test_thirteen_words_are_the_default() -> None:
    thirteen = " ".join(map(str, range(13)))
    evaluation = EvaluationIndex([(f"x {thirteen} y z", Source("test.jsonl", 1))])
    assert evaluation.find(f"p {thirteen} q") and not evaluation.find(f"p {thirteen[:-3]} q r s t u v")


def test_no_evaluation_texts() -> None:
    assert EvaluationIndex([]).find(LONG) is None
    assert index(LONG, "", "?").num_texts == 1
