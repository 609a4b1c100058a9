"""A number that two conversations share when they say the same."""

import hashlib
import unicodedata
from collections.abc import Sequence

import orjson

from .rows import Message

_LOWER = bytes(range(256)).lower()
_SPACE = b" \t\n\r\v\f"
# Between who speaks and what is said.
_SEPARATOR = "\x1e"


def fingerprint(messages: Sequence[Message]) -> int:
    """Return 64 bits that depend on who says what in which order, not on letter case, blank space or Unicode form.

    The same on every machine and in every release of Python. Among 8 million different conversations, two share theirs
    with a probability of 2 in a million.
    """
    return hashed(plain_conversation(messages))


def hashed(conversation: bytes) -> int:
    """Return the fingerprint of a conversation in plain bytes."""
    return int.from_bytes(hashlib.blake2b(conversation, digest_size=8).digest(), "little")


def plain_conversation(messages: Sequence[Message]) -> bytes:
    """Return who says what as UTF-8, without letter case, blank space and differences of Unicode form."""
    parts: list[str] = []
    for message in messages:
        parts += message["role"], message["content"]
        if len(message) > 2:
            parts.append(message.get("reasoning_content", ""))
            if calls := message.get("tool_calls"):
                parts.append(orjson.dumps(calls, option=orjson.OPT_SORT_KEYS).decode())
    return _plain(parts)


def plain_contents(messages: Sequence[Message], conversation: bytes) -> bytes:
    """Return the contents of all but system turns, which rows share; `conversation` is `plain_conversation`."""
    parts = conversation.split(b"\x1e")
    if len(parts) == 2 * len(messages):
        return b"\x1e".join(parts[3 if parts[0] == b"system" else 1 :: 2])
    return _plain([message["content"] for message in messages if message["role"] != "system"])


def _plain(texts: Sequence[str]) -> bytes:
    text = _SEPARATOR.join(texts)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    return text.encode("utf-8", "surrogatepass").translate(_LOWER, _SPACE)
