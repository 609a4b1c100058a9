"""What of a generated text is the answer, and when two answers are the same."""

import re
import unicodedata

from ..reasoning import END_THINK, THINK

# Signs that quote or end an answer without changing it; not "-", "%" or "$", which do.
_TRIMMED = " \t\n.,;:!?\"'`*“”‘’«»"


def final_answer(text: str, thinking: bool = False) -> str:
    """Return what follows the reasoning: the text after the last `</think>`, stripped.

    Without a `</think>` it is the whole text; but nothing, when the text (or, where `thinking`, the prompt) has opened
    reasoning that was cut off before it ended.
    """
    if END_THINK in text:
        return text.rsplit(END_THINK, 1)[1].strip()
    if thinking or text.lstrip().startswith(THINK):
        return ""
    return text.strip()


def normalise(answer: str) -> str:
    """Return the answer with case, Unicode variants, runs of space, and marks around it ignored.

    `  "Paris." ` and `paris` are the same then; 3.5 and 35, or -4 and 4, are not.
    """
    folded = unicodedata.normalize("NFKC", answer).casefold()
    return re.sub(r"\s+", " ", folded).strip(_TRIMMED)


def is_exact_match(answer: str, reference: str) -> bool:
    """Return whether both are the same once normalised, and not empty."""
    normalised = normalise(answer)
    return bool(normalised) and normalised == normalise(reference)
