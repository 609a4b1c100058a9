"""What of a row its chat template did not write, and the model would be trained without."""

import json
from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..reasoning import END_THINK, THINK
from .rows import Row
from .template import ChatTemplate, Rendered, render


def left_out(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, row: Row, rendered: Rendered) -> str | None:
    """Return the field of a row that the template did not write, such as `messages[1].reasoning_content`, or None.

    `rendered` is what it wrote. Tools count as written where their names, descriptions, parameters and allowed values
    are in what the template writes with them and does not write without them.
    """
    field = _left_out_message(row, rendered.text)
    if field is None and row.tools:
        try:
            bare = render(tokenizer, template, row.messages).text
        except TemplateError:
            bare = ""
        field = _left_out_tool(row.tools, _added(bare, rendered.text))
    return field


def _left_out_message(row: Row, text: str) -> str | None:
    # Where what was said last ends. Turns stand in their order, reasoning before its answer: a text that has been there
    # already is another one's. System messages and tools' answers may stand anywhere.
    end = 0
    for i, message in enumerate(row.messages):
        in_order = message["role"] in ("user", "assistant")
        for name in ("reasoning_content", "content"):
            # Templates part the reasoning of a content that holds it from the rest.
            for part in message.get(name, "").replace(THINK, END_THINK).split(END_THINK):
                found = _end_of(part.strip(), text, end if in_order else 0)
                if found < 0:
                    # An answer that only stands before its reasoning took the place of that.
                    is_shifted = "reasoning_content" in message and _end_of(part.strip(), text, 0) >= 0
                    return f"messages[{i}].{'reasoning_content' if is_shifted else name}"
                end = found if in_order else end
        for k, call in enumerate(message.get("tool_calls", ())):
            if call["function"]["name"] not in text:
                return f"messages[{i}].tool_calls[{k}]"
    return None


def _left_out_tool(tools: list[Any], added: str) -> str | None:
    for k, tool in enumerate(tools):
        for field, text in _schema_texts(f"tools[{k}]", tool):
            # Some templates write each line of a description as a comment of its own.
            if not all(_is_in(line.strip(), added) for line in text.split("\n")):
                return field if added else f"tools[{k}]"
    return None


def _schema_texts(field: str, schema: Any, of_properties: bool = False) -> Iterator[tuple[str, str]]:
    """Yield what a JSON schema says in words, and where: names, descriptions, properties and values to choose from."""
    if isinstance(schema, list):
        for i, inner in enumerate(schema):
            yield from _schema_texts(f"{field}[{i}]", inner)
    if not isinstance(schema, dict):
        return
    for key, inner in schema.items():
        place = f"{field}.{key}"
        if of_properties:
            yield place, key
        elif key in ("name", "description") and isinstance(inner, str):
            yield place, inner
        elif key == "enum" and isinstance(inner, list):
            yield from ((f"{place}[{i}]", value) for i, value in enumerate(inner) if isinstance(value, str))
        yield from _schema_texts(place, inner, key == "properties" and not of_properties)


def _added(bare: str, text: str) -> str:
    """Return `text` from where it begins to differ from `bare` to where the rest of both is the same."""
    shorter = min(len(bare), len(text))
    start = _same(shorter, lambda number: bare[:number] == text[:number])
    end = _same(shorter - start, lambda number: bare[len(bare) - number :] == text[len(text) - number :])
    return text[start : len(text) - end]


def _same(most: int, holds: Any) -> int:
    """Return the greatest number up to `most` for which `holds`, as it does for every smaller one."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _is_in(part: str, text: str) -> bool:
    return _end_of(part, text, 0) >= 0


def _end_of(part: str, text: str, start: int) -> int:
    """Return where `part` ends the first time it stands in `text` behind `start`, or -1."""
    # What tools answer is JSON in some templates, and so are tools in most.
    for written in (part, json.dumps(part, ensure_ascii=False)[1:-1]):
        if (found := text.find(written, start)) >= 0:
            return found + len(written)
    return -1
