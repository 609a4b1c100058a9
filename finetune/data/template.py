"""Chat templates: which one a tokenizer is trained with, and what it makes of a conversation.

A training template marks what the model is to learn with `{% generation %}`. Few published tokenizers have such
markers, so seeklet ships templates that write the same text with them; a shipped one is only ever taken by itself
where it writes the very text that the tokenizer's own writes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import DataError
from .rows import Message

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NOTHING = re.compile(r"(?!)")
# Where there is no reasoning, deepseek-r1 closes the tag that its answers start with, and DeepSeek's own does not.
_EMPTY_REASONING = re.compile(r"<think>\s*</think>\n\n")
_FOLDER = Path(__file__).with_name("templates")
# Where a template would write today's date, so that the same data gives the same tokens tomorrow.
_FIXED = {"date_string": "26 Jul 2024"}
_USER = {"role": "user", "content": "How do I return a parcel?"}
_ANSWER = {"role": "assistant", "content": "Print the label.\n\nThen bring it to the shop."}
_PROBES: tuple[tuple[Message, ...], ...] = (
    (_USER, _ANSWER),
    ({"role": "system", "content": "You help customers."}, _USER, _ANSWER),
    (_USER, _ANSWER, {"role": "user", "content": " And a second one? "}, {"role": "assistant", "content": "The same."}),
)


# A Jinja comment trims white space as the marker does that it stands for.
_SERVED_MARKER = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


class ChatTemplate(NamedTuple):
    """A Jinja chat template, and where it is from: a shipped name, a path, or "tokenizer"."""

    name: str
    text: str

    @property
    def has_markers(self) -> bool:
        """Whether it marks what the model generates, so that only that is trained on."""
        return _MARKERS.search(self.text) is not None


class Rendered(NamedTuple):
    """A conversation as text, and the stretches of it that the model generates, as (start, end) in characters."""

    text: str
    generated: list[tuple[int, int]]


def shipped_templates() -> dict[str, str]:
    """Return the text of each template that comes with seeklet, by name."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(_FOLDER.glob("*.jinja"))}


def choose_template(
    tokenizer: PreTrainedTokenizerBase, wanted: str | None = None, assistant_only: bool = True
) -> ChatTemplate:
    """Return the template to train `tokenizer` with.

    `wanted` is a shipped name or a path. Without it, it is the tokenizer's own if that has generation markers (or if
    `assistant_only` is off, when none are needed), else a shipped one that writes the same text.

    Raises:
        DataError: `wanted` is neither; the tokenizer has no template; no template with markers writes the same text;
            the template cannot be run.
    """
    shipped = shipped_templates()
    if wanted is not None:
        template = ChatTemplate(wanted, shipped[wanted] if wanted in shipped else _read(wanted, shipped))
        if assistant_only and not template.has_markers:
            raise DataError(
                f"data.chat_template: {wanted} has no {{% generation %}} markers, so what the assistant writes cannot "
                f"be told from the rest; {_what_to_do(shipped)}"
            )
        _check_runs(tokenizer, template)
        return template
    own = own_template(tokenizer)
    if own is None:
        raise DataError(
            "the tokenizer has no chat template, as is usual for base models; set data.chat_template to one of "
            f"{', '.join(shipped)} or to the path of a .jinja file, or take the instruction-tuned model"
        )
    _check_runs(tokenizer, own)
    if own.has_markers or not assistant_only:
        return own
    written = _written(tokenizer, own)
    for ignored in (_NOTHING, _EMPTY_REASONING):
        for name, text in shipped.items():
            if _without(ignored, _written(tokenizer, ChatTemplate(name, text))) == _without(ignored, written):
                return ChatTemplate(name, text)
    raise DataError(
        "the tokenizer's chat template has no {% generation %} markers, so what the assistant writes cannot be told "
        f"from the rest, and no shipped template writes the same text; {_what_to_do(shipped)}"
    )


def served_template(template: ChatTemplate) -> str:
    """Return the template without the markers of what is trained on, which not every engine knows."""
    return _SERVED_MARKER.sub(r"{#\1 \2#}", template.text)


def own_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Return the template that the tokenizer itself has, the one named "default" where it has several."""
    text = tokenizer.chat_template
    if isinstance(text, Mapping):
        text = text.get("default")
    return None if text is None else ChatTemplate("tokenizer", text)


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: list[Any] | None = None,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Return a conversation as the template writes it.

    Raises:
        TemplateError: the template refuses the conversation, or trips over it, or is none.
    """
    variables: dict[str, Any] = {**tokenizer.special_tokens_map, **_FIXED}
    try:
        texts, generated = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=template.text,
            return_assistant_tokens_mask=template.has_markers,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except TemplateError:
        raise
    # A template is a program, of the user's: it may divide by zero, add a number to a text, call itself without end.
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return Rendered(texts[0], list(generated[0]) if template.has_markers else [])  # pyright: ignore[reportArgumentType]


def _check_runs(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Check that the template writes one ordinary conversation at least, or refuses them by its own words.

    Raises:
        DataError: it is no template, or trips over all of them. Every row of data would say the same.
    """
    errors: list[TemplateError] = []
    for probe in _PROBES:
        try:
            render(tokenizer, template, probe)
            return
        except TemplateError as error:
            errors.append(error)
    # What a template raises itself is of this very class; a template may ask for what ordinary conversations lack.
    faults = [error for error in errors if type(error) is not TemplateError or error.__cause__ is not None]
    if faults:
        what = (
            "the tokenizer's chat template" if template.name == "tokenizer" else f"data.chat_template: {template.name}"
        )
        line = f", line {faults[0].lineno}" if isinstance(faults[0], TemplateSyntaxError) else ""
        raise DataError(f"{what}{line} cannot be run: {faults[0]}; allowed: a Jinja template of a chat") from faults[0]


def _written(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[tuple[str, str] | None]:
    """Return how a template writes ordinary conversations, and what it writes before their last answer."""
    written = []
    for probe in _PROBES:
        # A template may refuse a probe: one without a system role, say.
        try:
            prompt = render(tokenizer, template, probe[:-1], add_generation_prompt=True)
            written.append((prompt.text, render(tokenizer, template, probe).text))
        except TemplateError:
            written.append(None)
    return written


def _without(ignored: re.Pattern, written: list[tuple[str, str] | None]) -> list[tuple[str, str] | None]:
    return [texts and (ignored.sub("", texts[0]), ignored.sub("", texts[1])) for texts in written]


def _read(path: str, shipped: Mapping[str, str]) -> str:
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f'data.chat_template: "{path}" is neither a file nor a shipped template; shipped: {", ".join(shipped)}'
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template: {path} cannot be read: {error}") from error


def _what_to_do(shipped: Mapping[str, str]) -> str:
    return (
        "put {% generation %} before and {% endgeneration %} behind what the assistant writes, or set "
        f"data.chat_template to one of {', '.join(shipped)}, or set data.assistant_only to false to train on all tokens"
    )
