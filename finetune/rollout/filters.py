"""What keeps a right answer out of the dataset: its form, its length, and the scripts it mixes."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from ..attempts import Attempt
from ..reasoning import is_well_formed, parse
from .settings import RejectionSamplingSettings

# Scripts that one language writes together.
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}
# Mathematics is written with these in any language.
_NO_SCRIPT = (
    "GREEK",
    "MATHEMATICAL",
    "DOUBLE-STRUCK",
    "SCRIPT",
    "BLACK-LETTER",
    "MODIFIER",
    "SUPERSCRIPT",
    "SUBSCRIPT",
)
# Commands of LaTeX, tags, and letters that stand alone, as variables do.
_NO_LANGUAGE = re.compile(r"\\[A-Za-z]+|</?[A-Za-z]+>|(?<![^\W\d_])[A-Za-z](?![^\W\d_])")


def find_objection(attempt: Attempt, settings: RejectionSamplingSettings) -> str | None:
    """Return why an attempt is not to be kept, or None; in the order of the report."""
    if not attempt.finished:
        return "cut off"
    if attempt.reasons or attempt.reward is None:
        return "not scored"
    if not attempt.is_right:
        return "reward too low"
    for name, least in settings.min_rewards.items():
        score = attempt.rewards.get(name)
        if score is None or score < least:
            return "reward too low"
    completion = parse(attempt.text)
    if settings.requires_format and not is_well_formed(attempt.text):
        return "malformed"
    if not completion.answer:
        return "no answer"
    if settings.requires_reasoning and not completion.reasoning:
        return "no reasoning"
    if attempt.num_tokens < settings.min_tokens:
        return "too short"
    if settings.max_tokens is not None and attempt.num_tokens > settings.max_tokens:
        return "too long"
    limit = settings.max_paragraph_characters
    if limit is not None and longest_paragraph(attempt.text) > limit:
        return "long paragraph"
    return "mixed languages" if foreign_share(attempt.text) > settings.max_foreign_share else None


# All that `find_objection` and the choice among a prompt's attempts can say, in order.
OBJECTIONS = (
    "cut off",
    "not scored",
    "reward too low",
    "malformed",
    "no answer",
    "no reasoning",
    "too short",
    "too long",
    "long paragraph",
    "mixed languages",
    "in an evaluation set",
    "duplicate",
    "always solved",
    "enough of the prompt",
)


def longest_paragraph(text: str) -> int:
    """Return the characters of the longest run of text without an empty line.

    >>> longest_paragraph("ab\\nc\\n\\nd")
    4
    """
    return max(len(part.strip()) for part in re.split(r"\n\s*\n", text))


def foreign_share(text: str) -> float:
    """Return the share of letters that are not of the script that most letters are of.

    Greek letters count nowhere, nor do commands of LaTeX and single Latin letters, which mathematics in any language
    has. It tells scripts apart and not languages: English with German has none; the reward `language` knows those.

    >>> foreign_share("дважды two, λ and \\\\frac x")
    0.5
    """
    if text.isascii():
        return 0.0
    letters = Counter(filter(None, map(_script, _NO_LANGUAGE.sub(" ", text))))
    return 1 - max(letters.values()) / letters.total() if letters else 0.0


@lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    """Return the script of a letter by its Unicode name; None of what is no letter, or mathematics."""
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "UNKNOWN").split()[0]
    return None if script in _NO_SCRIPT else _TOGETHER.get(script, script)
