"""Which rows are held out, decided by each row's content alone."""

from collections.abc import Sequence

from .fingerprint import fingerprint
from .rows import Message


def split_key(messages: Sequence[Message]) -> int:
    """Return 64 bits that depend on all that was said before the last answer.

    The answer itself does not count: a question that was answered twice is not to be trained on with one answer and
    asked with the other. Nor do system messages, which a recipe may change. As `fingerprint`, it knows no letter case
    and no blank space.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return fingerprint([message for message in messages[:last] if message["role"] != "system"])


def is_held_out(messages: Sequence[Message], share: float) -> bool:
    """Return whether a conversation belongs to the held-out `share` (from 0 to 1).

    The side depends on nothing else: not on other rows, their order, a seed, the machine or the release. What is held
    out at a share is held out at every greater one.
    """
    return split_key(messages) < share * 2**64
