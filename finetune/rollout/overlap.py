"""Overlap with evaluation sets by n-grams of words: what keeps test problems out of training data."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from ..data.rows import Source

# Words, numbers, and signs of arithmetic, which tell short problems apart; a hyphen in a word is none.
_WORDS = re.compile(r"[^\W_]+|[+*/=<>^%]|-(?![^\W\d_])")


def words(text: str) -> list[str]:
    """Return the words of a text, letter case, Unicode form and punctuation left out.

    >>> words("What is 3-1, well-known?")
    ['what', 'is', '3', '-', '1', 'well', 'known']
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(tokens: Sequence[str], size: int) -> Iterable[int]:
    """Return 64 bits for each run of `size` words, none where there are fewer."""
    for start in range(len(tokens) - size + 1):
        yield _key(tokens[start : start + size])


class EvaluationIndex:
    """The n-grams of evaluation texts.

    A text overlaps with an evaluation text when they share `ngram` words in a row. Where one of them has fewer words
    than that, but at least `min_ngram`, all of it must be in the other; where it has fewer still, they must be the same
    word for word, since short texts have much in common with any other.
    """

    def __init__(self, texts: Iterable[tuple[str, Source]], ngram: int = 13, min_ngram: int = 8):
        """Take note of texts, each with the place it stands."""
        self._ngram, self._least = ngram, min_ngram
        # By size: of all runs of words in evaluation texts, and of those that are all of one.
        self._runs: dict[int, dict[int, Source]] = {size: {} for size in range(min_ngram, ngram + 1)}
        self._wholes: dict[int, dict[int, Source]] = {size: {} for size in range(min_ngram, ngram)}
        self._same: dict[int, Source] = {}
        self.num_texts = 0
        for text, source in texts:
            tokens = words(text)
            if not tokens:
                continue
            self.num_texts += 1
            self._same.setdefault(_key(tokens), source)
            if min_ngram <= len(tokens) < ngram:
                self._wholes[len(tokens)].setdefault(_key(tokens), source)
            for size, runs in self._runs.items():
                for key in ngrams(tokens, size):
                    runs.setdefault(key, source)

    def find(self, text: str) -> Source | None:
        """Return where an evaluation text stands that `text` overlaps with, or None."""
        tokens = words(text)
        if not self.num_texts or not tokens:
            return None
        if (source := self._same.get(_key(tokens))) is not None:
            return source
        # Whatever overlaps shares this much, and most texts do not.
        if _first(self._runs[self._least], ngrams(tokens, self._least)) is None:
            return None
        size = min(len(tokens), self._ngram)
        if (source := _first(self._runs[size], ngrams(tokens, size))) is not None:
            return source
        for size, wholes in self._wholes.items():
            if wholes and (source := _first(wholes, ngrams(tokens, size))) is not None:
                return source
        return None


def _first(known: dict[int, Source], keys: Iterable[int]) -> Source | None:
    return next((known[key] for key in keys if key in known), None)


def _key(tokens: Sequence[str]) -> int:
    # Of this process only, and ten times as fast as a digest.
    return hash(tuple(tokens))
