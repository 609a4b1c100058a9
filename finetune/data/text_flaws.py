"""What is suspicious in the text itself: signs of a broken export, and markup that steers a chat model."""

import re

from .problems import Flaw, Severity
from .wording import quoted

# A file written as UTF-8 and read as Windows-1252 before it was written again: ’ “ ” – … and accented letters.
_MOJIBAKE = re.compile("â€[™œ“”˜¦]|Ã[©¨¤¶¼±§¡³]|Â[ £°»«]")
# What the templates of well-known models put around turns: DeepSeek, ChatML, Llama 3, Llama 2, Gemma, Mistral.
_MARKUP = re.compile(r"<｜[^｜<>]{1,40}｜>|<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<<SYS>>")
_MARKUP_STARTS = ("<｜", "<|", "_of_turn>", "INST]", "<<SYS>>")


def may_be_flawed(text: str) -> bool:
    """Return False for nearly all text that has no flaw: looking for one character costs some 20 ns."""
    if "<" in text or ("]" in text and "INST]" in text) or "\0" in text:
        return True
    return not text.isascii() and ("â" in text or "Ã" in text or "Â" in text or "\ufffd" in text)


def text_flaws(text: str, field: str) -> list[Flaw]:
    """Return what is suspicious in `text`, called `field` in messages: one flaw a kind."""
    if not may_be_flawed(text):
        return []
    flaws: list[Flaw] = []

    def add(kind: str, severity: Severity, message: str) -> None:
        flaws.append(Flaw(field, message, kind, severity))

    if "\0" in text:
        add("nul-character", "error", f"holds a NUL character, near {_around(text, text.index(chr(0)))}")
    if "\ufffd" in text:
        where = _around(text, text.index("\ufffd"))
        add("replacement-character", "warning", f"holds U+FFFD, which stands for lost characters, near {where}")
    if match := _MOJIBAKE.search(text):
        where = _around(text, match.start())
        add("mojibake", "warning", f"looks like UTF-8 read as Windows-1252, near {where}; export it again as UTF-8")
    if any(start in text for start in _MARKUP_STARTS) and (match := _MARKUP.search(text)):
        message = f"holds {quoted(match[0])}, chat markup of a well-known model; a tokenizer may take it for a new turn"
        add("chat-markup", "warning", message)
    return flaws


def _around(text: str, index: int) -> str:
    return quoted(text[max(0, index - 15) : index + 15])


def special_token_flaws(text: str, field: str, special: re.Pattern[str]) -> list[Flaw]:
    """Return the special tokens of the tokenizer, as found by `special`, that are spelled out in `text`."""
    found = dict.fromkeys(special.findall(text))
    message = ", ".join(quoted(token) for token in found)
    reason = "which the tokenizer reads as the structure of a chat, not as text"
    return [Flaw(field, f"holds {message}, {reason}", "special-token")] if found else []


def special_token_pattern(tokens: list[str]) -> re.Pattern[str]:
    """Return what matches any of `tokens`, the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")
