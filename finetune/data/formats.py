"""The shapes that rows come in: found by their keys, and one pure converter for each from record to messages."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import orjson

from .order import CALL
from .rows import ROLES
from .wording import listed

# Names the part of the row, as the file spells it, that became key `key` of message `index`.
FieldName = Callable[[int, str], str]
# Says what the row calls the role of each message, and what such a file calls ours.
RoleNames = Callable[[], tuple[list[str], Mapping[str, str]]]


class Column(NamedTuple):
    """One column of a shape: our name for it, other names it goes by, and whether a row can do without."""

    name: str
    others: tuple[str, ...] = ()
    required: bool = False


class Draft(NamedTuple):
    """A row in our terms with nothing checked yet: `messages` may be anything, and so may what is in it."""

    messages: Any
    tools: Any
    field: FieldName
    # What the file may call the roles; and what it does, where that is not as we do.
    roles: tuple[str, ...] = ROLES
    role_names: RoleNames | None = None


# The first shape all of whose required columns are there is the one.
SHAPES: Mapping[str, tuple[Column, ...]] = {
    "messages": (Column("messages", required=True), Column("tools")),
    "sharegpt": (Column("conversations", ("conversation",), required=True), Column("system"), Column("tools")),
    "alpaca": (
        Column("instruction", required=True),
        Column("input", ("context",)),
        Column("output", ("response",), required=True),
        Column("system"),
    ),
    "prompt_completion": (
        Column("prompt", required=True),
        Column("completion", ("response",), required=True),
        Column("tools"),
    ),
    "question_answer": (
        Column("question", ("q", "query"), required=True),
        Column("answer", ("a", "response"), required=True),
        Column("context"),
        Column("system"),
    ),
}

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_SHAREGPT_NAMES = {"user": "human", "assistant": "gpt", "tool": "observation", CALL: "function_call"}

# From our name of a column to the file's.
Columns = Mapping[str, str]


def convert(shape: str, columns: Columns, record: Mapping[str, Any]) -> Draft:
    """Return `record` as messages; `columns` holds the file's names for the columns of `shape` that it has."""
    return _CONVERTERS[shape](columns, record)


def _from_messages(columns: Columns, record: Mapping[str, Any]) -> Draft:
    name = columns["messages"]
    return Draft(_parsed(record.get(name)), _parsed(_value("tools", columns, record)), partial(_in_list, name))


def _from_sharegpt(columns: Columns, record: Mapping[str, Any]) -> Draft:
    name = columns["conversations"]
    turns = _parsed(record.get(name))
    tools = _parsed(_value("tools", columns, record))
    if type(turns) is not list:
        return Draft(turns, tools, partial(_in_list, name))
    system = _value("system", columns, record)
    first = [{"role": "system", "content": system}] if system else []
    messages = first + [_sharegpt_turn(turn) for turn in turns]
    field = partial(_in_conversation, name, columns.get("system", ""), len(first), turns)
    return Draft(
        messages, tools, field, (*ROLES, "human", "gpt"), partial(_sharegpt_names, messages, len(first), turns)
    )


def _sharegpt_names(messages: list[Any], num_before: int, turns: list[Any]) -> tuple[list[str], Mapping[str, str]]:
    said = [turn.get("from", turn.get("role")) if type(turn) is dict else None for turn in turns]
    names = [name if isinstance(name, str) else "" for name in said]
    ours = [message.get("role") if type(message) is dict else None for message in messages[num_before:]]
    # Plain assistant turns: one that calls a tool has a name of its own.
    used = {role: name for role, name in zip(ours, names, strict=True) if role in ROLES and name != "function_call"}
    return ["system"] * num_before + names, _SHAREGPT_NAMES | used


def _sharegpt_turn(turn: Any) -> Any:
    if type(turn) is not dict or "from" not in turn:
        return turn
    spoken = turn["from"]
    role = _SHAREGPT_ROLES.get(spoken, spoken) if isinstance(spoken, str) else spoken
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if spoken == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(turn.get("value")), **rest}
    return {"role": role, "content": turn["value"], **rest} if "value" in turn else {"role": role, **rest}


def _calls(value: Any) -> Any:
    """Return what a ShareGPT function_call holds, one call or several as JSON text, as tool_calls."""
    calls = _parsed(value)
    return calls if isinstance(calls, list) else [calls]


def _from_columns(
    system: str, first: str, second: str, answer: str, columns: Columns, record: Mapping[str, Any]
) -> Draft:
    """Return one question and one answer from plain columns; `first` and `second` are joined by an empty line."""
    messages: list[Any] = []
    names: list[str] = []
    if text := _value(system, columns, record):
        messages.append({"role": "system", "content": text})
        names.append(columns[system])
    parts = [(columns[key], record.get(columns[key])) for key in (first, second) if key in columns]
    filled = [(name, part) for name, part in parts if part is not None and part != ""]
    # A part that is no text stands alone, for the check to find.
    odd = [(name, part) for name, part in filled if not isinstance(part, str)]
    name, text = odd[0] if odd else (" and ".join(dict(filled or parts)), "\n\n".join(part for _, part in filled))
    messages.append({"role": "user", "content": text})
    messages.append({"role": "assistant", "content": record.get(columns[answer])})
    return Draft(messages, None, partial(_of_columns, (*names, name, columns[answer])))


def _from_prompt_completion(columns: Columns, record: Mapping[str, Any]) -> Draft:
    """Return prompt and completion as one turn each where they are texts, joined where they are lists of messages."""
    tools = _parsed(_value("tools", columns, record))
    messages: list[Any] = []
    names: list[tuple[str, int | None]] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = record.get(columns[key])
        turns = value if isinstance(value, list) else [{"role": role, "content": value}]
        messages += turns
        names += [(columns[key], index if turns is value else None) for index in range(len(turns))]
    return Draft(messages, tools, partial(_of_parts, names))


_CONVERTERS: Mapping[str, Callable[[Columns, Mapping[str, Any]], Draft]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": partial(_from_columns, "system", "instruction", "input", "output"),
    "prompt_completion": _from_prompt_completion,
    "question_answer": partial(_from_columns, "system", "context", "question", "answer"),
}


def _value(name: str, columns: Columns, record: Mapping[str, Any]) -> Any:
    """Return what a row has in a column that it may do without, or None."""
    return record.get(columns[name]) if name in columns else None


def _parsed(value: Any) -> Any:
    """Return `value`, read as JSON where it is a text: the cell of a table, which cannot hold a list."""
    if type(value) is not str:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _in_list(name: str, index: int, key: str) -> str:
    return f"{name}[{index}].{key}" if key else f"{name}[{index}]"


def _in_conversation(name: str, system: str, num_before: int, turns: list[Any], index: int, key: str) -> str:
    if index < num_before:
        return system
    turn = turns[index - num_before]
    if isinstance(turn, dict) and "from" in turn:
        key = {"role": "from", "content": "value"}.get(key, key)
    return _in_list(name, index - num_before, key)


def _of_columns(names: tuple[str, ...], index: int, key: str) -> str:
    return names[index]


def _of_parts(names: list[tuple[str, int | None]], index: int, key: str) -> str:
    name, position = names[index]
    return name if position is None else _in_list(name, position, key)


def required(shape: str) -> str:
    """Return the columns a row of `shape` must have, in words."""
    return " and ".join(column.name for column in SHAPES[shape] if column.required)


def known_shapes() -> str:
    """Return every shape by its required columns, in words."""
    return "; ".join(required(shape) for shape in SHAPES)


def shown_columns(columns: Columns) -> str:
    """Return the file's names for the columns that are used, in words."""
    return listed(columns.values())
