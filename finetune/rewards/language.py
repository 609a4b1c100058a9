"""The reward of keeping to one language: the share of words in it, as R1 has it against mixing languages."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from ..errors import RecipeError, RewardError
from ..reasoning import parse
from .completion import OPENED, Row, read_text

# Scripts that tell a language by themselves, as the first word of the characters' Unicode names. Others are Latin.
SCRIPTS = {
    **{code: {"CJK"} for code in ("zh", "wuu", "yue")},
    "ja": {"CJK", "HIRAGANA", "KATAKANA"},
    "ko": {"HANGUL"},
    **{code: {"CYRILLIC"} for code in ("be", "bg", "kk", "ky", "mk", "mn", "ru", "tg", "uk")},
    "sr": {"CYRILLIC", "LATIN"},
    **{code: {"ARABIC"} for code in ("ar", "fa", "ps", "ug", "ur")},
    **{code: {"DEVANAGARI"} for code in ("hi", "mr", "ne", "sa")},
    "el": {"GREEK"},
    "he": {"HEBREW"},
    "th": {"THAI"},
    "bn": {"BENGALI"},
    "ta": {"TAMIL"},
    "te": {"TELUGU"},
    "ka": {"GEORGIAN"},
    "hy": {"ARMENIAN"},
    "am": {"ETHIOPIC"},
}
# Chinese and Japanese have no blanks between words: there, each character counts as one.
WITHOUT_BLANKS = {"CJK", "HIRAGANA", "KATAKANA", "THAI"}
# Not language: formulas, code, links, and LaTeX's commands.
NOT_LANGUAGE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|https?://\S+", re.DOTALL
)
SENTENCE_END = re.compile(r"(?<=[.!?;:。！？；])\s*|\n+")
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# A shorter piece is too little to tell two languages of one script apart; it counts like what was before it.
LEAST_LETTERS = 12


@dataclass(frozen=True)
class Language:
    """The share of a completion's words that are in one language, from 0 to 1; 1 where it has no words.

    The language is an ISO 639-1 code, given here or by a column. A word in a script of another one is foreign: so
    Chinese in English shows word by word. Languages of one script are told apart by the sentence, with py3langid, which
    chooses between the language and `others`: English, unless set, as that is what models fall back to. Formulas, code
    and names of one letter do not count. `of` says whether reasoning, answer or both are looked at.
    """

    language: str | None = None
    column: str | None = None
    others: tuple[str, ...] = ("en", "zh")
    of: Literal["reasoning", "answer", "both"] = "both"

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = False

    def __post_init__(self):
        if (self.language is None) == (self.column is None):
            raise RecipeError("language or column: give one of them, the code itself or the column that holds it")
        for code in (self.language, *self.others):
            if code is not None and code not in _codes():
                raise RecipeError(f'language or others: there is no "{code}"; allowed: {", ".join(sorted(_codes()))}')

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row's language is none of ISO 639-1 that can be told.
        """
        language = self.language or read_text(row, self.column or "")
        if language not in _codes():
            raise RewardError(f'"{self.column}" is "{language}"; allowed: a code such as en, de or zh')
        parts = parse(completion, opened=bool(row.get(OPENED)))
        texts = {"reasoning": [parts.reasoning], "answer": [parts.answer], "both": list(parts)}[self.of]
        own, words = count_words("\n".join(texts), language, self.others)
        return own / words if words else 1.0


def count_words(text: str, language: str, others: Iterable[str]) -> tuple[int, int]:
    """Return how many words of a text are in a language, and how many there are; see `Language`."""
    scripts = SCRIPTS.get(language, {"LATIN"})
    rivals = [other for other in others if other != language and SCRIPTS.get(other, {"LATIN"}) & scripts]
    num_own = num_words = 0
    is_own = True
    for sentence in SENTENCE_END.split(NOT_LANGUAGE.sub(" ", text)):
        found = [(word, _script(word)) for word in WORD.findall(sentence)]
        lengths = [(len(word) if script in WITHOUT_BLANKS else 1, script) for word, script in found if len(word) > 1]
        num_words += sum(length for length, _ in lengths)
        in_script = " ".join(word for word, script in found if script in scripts)
        if rivals and len(in_script) >= LEAST_LETTERS:
            is_own = _identifier((language, *rivals)).classify(in_script)[0] == language
        num_own += sum(length for length, script in lengths if script in scripts) if is_own else 0
    return num_own, num_words


def _script(word: str) -> str:
    return unicodedata.name(word[0], "").partition(" ")[0]


@lru_cache(maxsize=32)
def _identifier(languages: tuple[str, ...]) -> Any:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(languages)
    return identifier


@lru_cache(maxsize=1)
def _codes() -> frozenset[str]:
    return frozenset(code for code in LanguageIdentifier.from_model_file(MODEL_FILE).labels if len(code) == 2)
