"""Which prompts are sampled at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..attempts import EncodedPrompt
from ..data.rows import Source
from ..prompts.read import Prompt
from .overlap import EvaluationIndex

# Why prompts are left out, in order.
REASONS = ("duplicate", "in an evaluation set", "too long")


@dataclass(frozen=True)
class Admitted:
    """The prompts to be sampled."""

    prompts: list[Prompt]
    encoded: list[EncodedPrompt]
    left_out: dict[str, int]
    """By reason, how many are not."""
    overlaps: list[tuple[Source, Source]] = field(default_factory=list)
    """Where prompts that are in an evaluation set stand, and where they stand in that."""


def admit(
    prompts: Sequence[Prompt],
    encode: Callable[[Prompt], EncodedPrompt],
    index: EvaluationIndex,
    max_tokens: int | None = None,
) -> Admitted:
    """Return the prompts that come for the first time, overlap with no evaluation text, and are not too long."""
    admitted = Admitted([], [], dict.fromkeys(REASONS, 0))
    seen: set[int] = set()
    for prompt in prompts:
        if prompt.key in seen:
            admitted.left_out["duplicate"] += 1
            continue
        seen.add(prompt.key)
        if (place := index.find(said_by_users(prompt))) is not None:
            admitted.left_out["in an evaluation set"] += 1
            admitted.overlaps.append((prompt.source, place))
            continue
        encoded = encode(prompt)
        if max_tokens is not None and len(encoded.ids) > max_tokens:
            admitted.left_out["too long"] += 1
            continue
        admitted.prompts.append(prompt)
        admitted.encoded.append(encoded)
    return admitted


def said_by_users(prompt: Prompt) -> str:
    """Return what users say in a prompt: what makes it the problem it is."""
    return "\n".join(message["content"] for message in prompt.messages if message["role"] == "user")
