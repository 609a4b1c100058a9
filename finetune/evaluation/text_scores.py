"""ROUGE, BLEU and chrF of answers against references, by rouge-score and sacrebleu, an example at a time."""

import re
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from .measures import Array, with_ones

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
# Chinese and Japanese do not separate words, so each of their signs counts as one.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}_]+")
MAX_NGRAM = 4


class UnicodeWords:
    """Splits text as rouge-score does, but keeps letters that are not ASCII, which it drops."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case; digits belong to words, punctuation does not."""
        return _WORD.findall(text.lower())


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, Array]:
    """Return by type (`ROUGE_TYPES`) the F1 of each answer, as rows (N, 2) of a mean. Words are not stemmed."""
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=UnicodeWords())
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: with_ones([score[name].fmeasure for score in scores]) for name in ROUGE_TYPES}


def chrf(answers: Sequence[str], references: Sequence[str]) -> Array:
    """Return the chrF of each answer, 0 to 1, as rows (N, 2) of a mean.

    sacrebleu's default, chrF2: character 6-grams, spaces left out, recall weighs double.
    """
    scorer = CHRF()
    scores = [
        scorer.sentence_score(answer, [reference]).score / 100
        for answer, reference in zip(answers, references, strict=True)
    ]
    return with_ones(scores)


def bleu_tokenizer(references: Sequence[str]) -> str:
    """Return sacrebleu's tokenizer for the language: `zh` where most letters are Chinese, else its default, `13a`."""
    text = "".join(references)
    letters = sum(sign.isalpha() for sign in text)
    chinese = sum(0x4E00 <= ord(sign) <= 0x9FFF for sign in text)
    return "zh" if chinese * 2 > letters else "13a"


def bleu_statistics(answers: Sequence[str], references: Sequence[str]) -> Array:
    """Return what each answer adds to corpus BLEU: (N, 10), matches and totals of 1- to 4-grams, and both lengths."""
    scorer = BLEU(tokenize=bleu_tokenizer(references), effective_order=True)
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        score = scorer.sentence_score(answer, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.asarray(rows, dtype=np.float64)


def bleu_of_sums(sums: Array) -> Array:
    """Return corpus BLEU, 0 to 100, with sacrebleu's default smoothing: sums (..., 10) of `bleu_statistics`."""
    rows = sums.reshape(-1, 2 * MAX_NGRAM + 2)
    return np.array([_bleu([int(number) for number in row]) for row in rows]).reshape(sums.shape[:-1])


def _bleu(row: list[int]) -> float:
    matches, totals = row[:MAX_NGRAM], row[MAX_NGRAM : 2 * MAX_NGRAM]
    *_, answer_length, reference_length = row
    return BLEU.compute_bleu(matches, totals, answer_length, reference_length, smooth_method="exp").score
