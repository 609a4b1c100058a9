"""Which attempts at a prompt are kept, when each alone may be."""

from collections.abc import Sequence

from ..attempts import Attempt
from ..data.fingerprint import fingerprint
from ..reasoning import parse
from .filters import find_objection
from .overlap import EvaluationIndex
from .settings import RejectionSamplingSettings


def share_right(attempts: Sequence[Attempt]) -> float:
    """Return the share of right attempts: how easy the prompt is."""
    return sum(attempt.is_right for attempt in attempts) / len(attempts)


def judge(attempts: Sequence[Attempt], settings: RejectionSamplingSettings, index: EvaluationIndex) -> list[str | None]:
    """Return, for each attempt at one prompt, why it is not kept, or None where it is."""
    objections = [find_objection(attempt, settings) for attempt in attempts]
    for number, attempt in enumerate(attempts):
        if objections[number] is None and index.find(attempt.text) is not None:
            objections[number] = "in an evaluation set"
    seen: set[int] = set()
    for number, attempt in enumerate(attempts):
        if objections[number] is None:
            key = attempt_key(attempt)
            objections[number] = "duplicate" if key in seen else None
            seen.add(key)
    limit, reason = settings.max_per_prompt, "enough of the prompt"
    if settings.always_solved != "keep" and share_right(attempts) == 1 and len(attempts) > 1:
        limit, reason = (1 if settings.always_solved == "one" else 0), "always solved"
    kept = [number for number, objection in enumerate(objections) if objection is None]
    if settings.prefer == "shortest":
        kept.sort(key=lambda number: attempts[number].num_tokens)
    for number in kept[limit:]:
        objections[number] = reason
    return objections


def attempt_key(attempt: Attempt) -> int:
    """Return a number that attempts share when they say the same, letter case and blank space aside."""
    reasoning, answer = parse(attempt.text)
    return fingerprint([{"role": "assistant", "content": answer, "reasoning_content": reasoning}])
