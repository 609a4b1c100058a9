"""Scores of answers: hand-computed cases, and the libraries' own figures for whole sets."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.evaluation.answers import final_answer, is_exact_match, normalise
from seeklet.finetune.evaluation.generation import Answer
from seeklet.finetune.evaluation.questions import Question
from seeklet.finetune.evaluation.scores import BLEU, CHRF, EXACT_MATCH, ROUGE, answer_rows, import_verifiers
from seeklet.finetune.evaluation.text_scores import bleu_of_sums, bleu_statistics, bleu_tokenizer, chrf, rouge

ANSWERS = ["Restart the router, then wait.", "The fee is 3,000 SEK per year.", "I do not know", ""]
REFERENCES = [
    "Restart your router and wait two minutes.",
    "The fee is 3,500 SEK per month.",
    "Call the help desk.",
    "Yes.",
]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("  Paris.\n", False, "Paris."),
        ("<think>France, so</think>\n\nParis.", False, "Paris."),
        ("France, so</think>Paris.", True, "Paris."),
        ("<think>a</think>b<think>c</think> d ", False, "d"),
        ("<think>cut off", False, ""),
        ("cut off", True, ""),
    ],
)
def test_final_answer(text: str, thinking: bool, answer: str) -> None:
    assert final_answer(text, thinking) == answer


def test_normalise() -> None:
    # Full-width letters and ligatures are compatibility forms; casefold makes ß ss.
    assert normalise("  “The  Straße ” ﬁx\n!") == "the strasse ” fix"
    assert normalise("ＡＢＣ 12") == "abc 12"


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Paris.", "  paris", True),
        ('"Paris"', "Paris!", True),
        ("**42**", "42", True),
        ("3.5", "35", False),
        ("-4", "4", False),
        ("50 %", "50", False),
        ("$5", "5", False),
        ("Paris, France", "Paris", False),
        ("", "", False),
        ("...", "!", False),
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert is_exact_match(answer, reference) is same


def test_rouge_by_hand() -> None:
    # 5 words each. Shared: the fee is 5 SEK -> the, fee, is, sek. Pairs: (the fee), (fee is). Longest: the fee is sek.
    scores = rouge(["The fee is 4 SEK"], ["the fee is 5 SEK"])
    found = {name: rows[0, 0] for name, rows in scores.items()}
    assert found == {"rouge1": pytest.approx(4 / 5), "rouge2": pytest.approx(2 / 4), "rougeL": pytest.approx(4 / 5)}
    # The longest common subsequence keeps order: of "b a" only one word.
    assert rouge(["b a"], ["a b"])["rougeL"][0, 0] == pytest.approx(1 / 2)


def test_rouge_is_the_librarys_own_on_english() -> None:
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score(r, a)["rougeL"].fmeasure for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    np.testing.assert_array_equal(rouge(ANSWERS, REFERENCES)["rougeL"][:, 0], expected)


def test_rouge_keeps_letters_that_are_not_ascii() -> None:
    # rouge-score's own words are a, t and rt, s, t: nothing in common. As words: 1 of 2, and 1 of 1 and 2.
    assert rouge(["träd växt"], ["träd"])["rouge1"][0, 0] == pytest.approx(2 * 1 * 0.5 / 1.5)
    # 重启路由器 and 重启电脑 share two of five and of four signs.
    assert rouge(["重启路由器"], ["重启电脑"])["rouge1"][0, 0] == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))


def test_bleu_by_hand() -> None:
    # the cat sat on mat . against the cat sat on the mat . : 6 of 6 words, 4 of 5 pairs, 3 of 4, 2 of 3; 6 against 7.
    rows = bleu_statistics(["the cat sat on mat."], ["the cat sat on the mat."])
    assert rows.tolist() == [[6, 4, 2, 1, 6, 5, 4, 3, 6, 7]]
    expected = 100 * np.exp(1 - 7 / 6) * (6 / 6 * 4 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu_of_sums(rows.sum(axis=0)) == pytest.approx(expected, rel=1e-12)


def test_bleu_and_chrf_are_sacrebleus_own() -> None:
    corpus = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert bleu_of_sums(bleu_statistics(ANSWERS, REFERENCES).sum(axis=0)) == pytest.approx(corpus, rel=1e-12)
    assert corpus > 5
    sentences = [sacrebleu.sentence_chrf(a, [r]).score / 100 for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    np.testing.assert_allclose(chrf(ANSWERS, REFERENCES)[:, 0], sentences, rtol=1e-12)


def test_bleu_splits_chinese_into_signs() -> None:
    assert (bleu_tokenizer(["请重启路由器 (USB)"]), bleu_tokenizer(["Restart 路由器"])) == ("zh", "13a")
    # Four of five signs and the three pairs, two triples and one quadruple of them.
    assert bleu_statistics(["重启路由机"], ["重启路由器"])[0, :8].tolist() == [4, 3, 2, 1, 5, 4, 3, 2]


def question(reference: str, thinking: bool = False) -> Question:
    return Question([{"role": "user", "content": "Why?"}], reference, "faq.jsonl:3", [1], thinking)


def answer(text: str) -> Answer:
    return Answer(text, num_tokens=3, finished=True)


def test_reasoning_is_left_out_of_every_score() -> None:
    questions = [question("Yes."), question("No.", thinking=True)]
    answers = [answer("<think>No, no.</think>yes"), answer("no, because")]
    rows = answer_rows(["loss", "exact_match", "rouge", "bleu"], {}, questions, answers)
    assert list(rows) == [EXACT_MATCH, *ROUGE.values(), BLEU, CHRF]
    # The second began to reason in its prompt and never came to an answer.
    assert [rows[measure][:, 0].tolist() for measure in (EXACT_MATCH, ROUGE["rouge1"])] == [[1.0, 0.0], [1.0, 0.0]]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "support_scores.py").write_text(
        "LIMIT = 3\n"
        "def polite(answer, reference, messages):\n"
        "    return 'please' in answer and messages[0]['content'] == 'Why?' and len(reference) / 8\n"
        "def nothing(answer, reference, messages):\n"
        "    return None\n"
        "def breaks(answer, reference, messages):\n"
        "    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("support_scores", None)


@pytest.mark.usefixtures("own_module")
def test_function_by_import_path() -> None:
    before = list(sys.path)
    name = "support_scores:polite"
    verifiers = import_verifiers(["rouge", name])
    assert list(verifiers) == [name] and sys.path == before
    rows = answer_rows([name], verifiers, [question("Wait"), question("Wait")], [answer("please"), answer("no")])
    ((measure, values),) = rows.items()
    assert (measure.name, values.tolist()) == (name, [[0.5, 1.0], [0.0, 1.0]])


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("no_such_module:score", r'"no_such_module:score" cannot be imported \(No module named \'no_such_module\'\)'),
        ("support_scores:no_such", 'support_scores has no function "no_such"; allowed: a function'),
        ("support_scores:LIMIT", 'support_scores has no function "LIMIT"'),
    ],
)
def test_function_that_is_not_there(metric: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        import_verifiers([metric])


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"returned None for faq.jsonl:3; allowed: a finite number"),
        ("breaks", r"failed for faq.jsonl:3 with ZeroDivisionError: division by zero"),
    ],
)
def test_function_that_gives_no_score(function: str, message: str) -> None:
    metric = f"support_scores:{function}"
    with pytest.raises(RecipeError, match=message):
        answer_rows([metric], import_verifiers([metric]), [question("Wait")], [answer("please")])
