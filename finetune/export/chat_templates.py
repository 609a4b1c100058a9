"""Go templates for Ollama, chosen by rendering: one that writes what the model's Jinja template writes, or none."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .go_template import render

# The markers of each template's turns: an answer that goes on with one has ended.
_TURNS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "deepseek-v3": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-r1": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-r1-kept": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "llama-3.1": ("<|start_header_id|>", "<|eot_id|>"),
    "moonlight": ("<|im_user|>", "<|im_system|>", "<|im_end|>"),
}
_SYSTEM = {"role": "system", "content": "Answer in one sentence.\nBe kind."}
_FIRST = {"role": "user", "content": "What is 2 + 2?"}
_ANSWER = {"role": "assistant", "content": "It is 4.\n\nAnything else?"}
_SECOND = {"role": "user", "content": "And 3 + 3,\nplease?"}
# The first without a system message and without an answer: what a template says of its own is seen there.
_CONVERSATIONS = (
    [_FIRST],
    [_FIRST, _ANSWER, _SECOND],
    [_SYSTEM, _FIRST],
    [_SYSTEM, _FIRST, _ANSWER, _SECOND, _ANSWER, _FIRST],
)
_MARK = "\0"
_FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class OllamaTemplate:
    """A Go template that writes a model's conversations.

    Attributes:
        name: of the family it is of.
        text: the template, without a token for the beginning of a text.
        begins_with: what the Jinja template writes before all else, the tokenizer's BOS; empty where it does not.
        system: what the Jinja template takes as system message where there is none; None where it takes none.
        stops: markers of turns.
    """

    name: str
    text: str
    begins_with: str
    system: str | None
    stops: tuple[str, ...]


def find_template(tokenizer: PreTrainedTokenizerBase) -> OllamaTemplate | None:
    """Return the template that writes what the tokenizer's does, tried on conversations; None where none does."""
    try:
        expected = [str(_render_jinja(tokenizer, messages)) for messages in _CONVERSATIONS]
    except (TemplateError, ValueError, TypeError, AttributeError, KeyError):
        return None
    # SmolLM2's BOS is the marker of its turns: it is no beginning where a template writes it anyway.
    beginnings = ["", tokenizer.bos_token] if isinstance(tokenizer.bos_token, str) else [""]
    for begins_with, name in itertools.product(beginnings, _TURNS):
        text = read_template(name)
        if not all(said.startswith(begins_with) for said in expected):
            continue
        rest = [said.removeprefix(begins_with) for said in expected]
        system = _default_system(text, rest[0])
        if [render_ollama(text, messages, system) for messages in _CONVERSATIONS] == rest:
            return OllamaTemplate(name, text, begins_with, system, _TURNS[name])
    return None


def read_template(name: str) -> str:
    """Return the Go template of a family."""
    return (_FOLDER / f"{name}.gotmpl").read_text(encoding="utf-8").removesuffix("\n")


def render_ollama(template: str, messages: list[dict[str, str]], system: str | None = None) -> str:
    """Return the prompt that Ollama makes of a conversation, `system` being the Modelfile's.

    As in Ollama's template.go: the Modelfile's system message comes first where the conversation has none, and
    `.System` is all system messages, two line ends between them.
    """
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [{"Role": message["role"], "Content": message["content"], "Thinking": ""} for message in messages]
    joined = "\n\n".join(turn["Content"] for turn in turns if turn["Role"] == "system")
    return render(template, {"Messages": turns, "System": joined, "IsThinkSet": False, "Think": False})


def _render_jinja(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _default_system(template: str, said: str) -> str | None:
    """Return the system message that makes the first conversation come out as `said`; None where it needs none."""
    conversation = list(_CONVERSATIONS[0])
    if render_ollama(template, conversation) == said:
        return None
    before, _, after = render_ollama(template, conversation, _MARK).partition(_MARK)
    if said.startswith(before) and said.endswith(after) and len(said) >= len(before) + len(after):
        return said[len(before) : len(said) - len(after)]
    return None
