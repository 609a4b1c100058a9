"""Conversations checked: every flaw of a draft, and the clean messages where it has no error."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from .formats import Draft
from .json_text import nesting
from .order import CALL, UNKNOWN, Misplaced, is_sound, misplaced, misplaced_as_named
from .problems import Flaw
from .rows import MESSAGE_KEYS, ROLES, Message
from .text_flaws import may_be_flawed, text_flaws
from .wording import described, listed, nearest

_KNOWN_KEYS = frozenset(MESSAGE_KEYS)
_MAX_TOOL_DEPTH = 32
# A row of 8 MiB can hold four million messages, each wrong.
_MAX_FLAWS = 100


def validate(draft: Draft) -> tuple[list[Message], list[Any] | None, list[Flaw]]:
    """Return the messages and tools of `draft`, checked, and every flaw found.

    With a flaw of severity "error" the messages and tools are of no use.
    """
    if draft.tools is None and is_plain(draft.messages):
        return draft.messages, None, []
    return _Explanation(draft).result()


def is_plain(messages: Any) -> bool:
    """Return whether these are messages of a role and some text each, in a sound order, with nothing to remark on.

    Most are: what is not is looked at again, slowly, by what can say why.
    """
    if type(messages) is not list:
        return False
    try:
        roles = tuple([message["role"] for message in messages])
        texts = [message["content"] for message in messages]
        sound = is_sound(roles) and not may_be_flawed("".join(texts))
    # A message that is no object or lacks a key; a role or content that is no text.
    except (TypeError, KeyError):
        return False
    if not sound:
        return False
    for message, text in zip(messages, texts, strict=True):
        if len(message) != 2 or not text or text.isspace():
            return False
    return True


class _Explanation:
    """Goes through a draft that is not plain, message by message."""

    def __init__(self, draft: Draft):
        self.draft = draft
        self.flaws: list[Flaw] = []

    def result(self) -> tuple[list[Message], list[Any] | None, list[Flaw]]:
        """As `validate`."""
        messages = self.draft.messages
        name = self.draft.field(0, "").removesuffix("[0]")
        if type(messages) is not list:
            self._flaw(name, f"is {described(messages)}; allowed: a list of messages", "wrong-type")
            return [], None, self.flaws
        if not messages:
            self._flaw(name, "is an empty list; allowed: at least a user and an assistant turn", "no-assistant")
            return [], None, self.flaws
        clean: list[Message] = []
        for index, message in enumerate(messages):
            clean.append(self._message(index, message))
            if len(self.flaws) > _MAX_FLAWS:
                words = f"has more problems after message {index}; after {_MAX_FLAWS} the rest of a row is not checked"
                self._flaw(name, words, "many-problems")
                return [], None, self.flaws
        self._order(name, clean)
        return clean, self._tools(), self.flaws

    def _flaw(self, field: str, message: str, kind: str) -> None:
        self.flaws.append(Flaw(field, message, kind))

    def _message(self, index: int, message: Any) -> Message:
        field = self.draft.field
        if type(message) is not dict:
            allowed = 'allowed: an object with "role" and "content"'
            self._flaw(field(index, ""), f"is {described(message)}; {allowed}", "wrong-type")
            return {"role": UNKNOWN, "content": ""}
        # Tables fill what a message lacks with null.
        given = {key: value for key, value in message.items() if value is not None or key == "content"}
        role = self._role(index, given)
        calls = self._tool_calls(index, given)
        content = self._content(index, given, empty_allowed=bool(calls))
        clean: Message = {"role": role, "content": content}
        for key in ("reasoning_content", "tool_call_id", "name"):
            text = given.get(key)
            if type(text) is str:
                if text:
                    clean[key] = text
                    self.flaws += text_flaws(text, field(index, key))
            elif key in given:
                self._flaw(field(index, key), f"is {described(text)}; allowed: text", "wrong-type")
        if calls:
            clean["tool_calls"] = calls
        for key, owner in (("reasoning_content", "assistant"), ("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if key in clean and role not in (owner, UNKNOWN):
                named, names = self._role_names(role, index)
                message = f'stands in a turn of "{named}"; allowed: {names.get(owner, owner)}'
                self._flaw(field(index, key), message, "misplaced-key")
        if unknown := [key for key in given if key not in _KNOWN_KEYS]:
            self._unknown_keys(index, unknown)
        return clean

    def _unknown_keys(self, index: int, unknown: list[str]) -> None:
        hint = next(filter(None, (nearest(key, MESSAGE_KEYS) for key in unknown)), "")
        message = f"has {listed(unknown)}, which nothing reads; allowed: {', '.join(MESSAGE_KEYS)}{hint}"
        self.flaws.append(Flaw(self.draft.field(index, ""), message, "unknown-key", "warning"))

    def _role(self, index: int, message: Message) -> str:
        role = message.get("role")
        if "role" not in message:
            given = listed(message)
            self._flaw(
                self.draft.field(index, ""), f"has no role, only {given}; allowed: role and content", "missing-key"
            )
        elif type(role) is not str:
            allowed = ", ".join(self.draft.roles)
            self._flaw(self.draft.field(index, "role"), f"is {described(role)}; allowed: {allowed}", "wrong-type")
        elif role not in ROLES:
            allowed = f"{', '.join(self.draft.roles)}{nearest(role, ROLES)}"
            self._flaw(self.draft.field(index, "role"), f"is {described(role)}; allowed: {allowed}", "unknown-role")
        return role if type(role) is str and role in ROLES else UNKNOWN

    def _content(self, index: int, message: Message, empty_allowed: bool) -> str:
        field = self.draft.field(index, "content")
        content = message.get("content")
        if type(content) is list:
            content = self._joined_parts(field, content)
        if type(content) is str and content and not content.isspace():
            self.flaws += text_flaws(content, field)
            return content
        if empty_allowed and (content is None or type(content) is str):
            return content or ""
        if "content" not in message:
            keys = [key for key in message if key not in _KNOWN_KEYS]
            hint = nearest("content", keys)
            self._flaw(self.draft.field(index, ""), f"has no content, only {listed(message)}{hint}", "missing-key")
        elif type(content) is str:
            self._flaw(field, f"is {'blank' if content else 'empty'}; allowed: some text", "empty-turn")
        elif content is None:
            self._flaw(field, "is null; allowed: some text", "empty-turn")
        elif content is not _ODD:
            self._flaw(field, f"is {described(content)}; allowed: text", "wrong-type")
        return ""

    def _joined_parts(self, field: str, parts: list[Any]) -> Any:
        """The text of content given in parts, as multimodal chats have it."""
        texts: list[str] = []
        for index, part in enumerate(parts):
            kind = part.get("type") if type(part) is dict else None
            text = part.get("text") if type(part) is dict else None
            if kind == "text" and type(text) is str:
                texts.append(text)
            else:
                shown = described(kind if isinstance(kind, str) else part)
                message = f'is {shown}; allowed: text, or parts such as {{"type": "text", "text": "…"}}'
                self._flaw(f"{field}[{index}]", message, "wrong-type")
        return "".join(texts) if len(texts) == len(parts) else _ODD

    def _tool_calls(self, index: int, message: Message) -> list[Any]:
        calls = message.get("tool_calls")
        field = self.draft.field(index, "tool_calls")
        if calls is None or calls == []:
            return []
        if type(calls) is not list:
            self._flaw(field, f"is {described(calls)}; allowed: a list of calls", "wrong-type")
            return []
        return [self._call(f"{field}[{number}]", call) for number, call in enumerate(calls)]

    def _call(self, field: str, call: Any) -> Any:
        function = call.get("function", call) if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            message = f'is {described(call)}; allowed: {{"function": {{"name": "…", "arguments": {{…}}}}}}'
            self._flaw(field, message, "bad-tool-call")
            return call
        arguments = function.get("arguments")
        if type(arguments) is str:
            try:
                arguments = orjson.loads(arguments)
            except orjson.JSONDecodeError as error:
                self._flaw(f"{field}.arguments", f"is not JSON: {error.msg} at column {error.pos + 1}", "bad-tool-call")
                return call
        if (arguments is not None and type(arguments) is not dict) or nesting(arguments) > _MAX_TOOL_DEPTH:
            message = f"is {described(arguments)}; allowed: an object, nested {_MAX_TOOL_DEPTH} deep at most"
            self._flaw(f"{field}.arguments", message, "bad-tool-call")
        return call if "function" in call else {"type": "function", "function": call}

    def _order(self, name: str, clean: list[Message]) -> None:
        calls = [message["role"] == "assistant" and "tool_calls" in message for message in clean]
        turns = tuple(CALL if call else message["role"] for call, message in zip(calls, clean, strict=True))
        found: Iterable[Misplaced] = misplaced(turns)
        if found and self.draft.role_names:
            found = misplaced_as_named(turns, *self.draft.role_names())
        for index, message, severity, kind in found:
            field = self.draft.field(index, "role") if index >= 0 else name
            self.flaws.append(Flaw(field, message, kind, severity))

    def _tools(self) -> list[Any] | None:
        tools = self.draft.tools
        if tools is None or tools == []:
            return None
        if type(tools) is not list:
            self._flaw("tools", f"is {described(tools)}; allowed: a list of JSON schemas", "wrong-type")
        elif nesting(tools) > _MAX_TOOL_DEPTH:
            self._flaw("tools", f"is nested too deeply; allowed: {_MAX_TOOL_DEPTH} levels", "too-deep")
        else:
            for index, tool in enumerate(tools):
                self._tool(f"tools[{index}]", tool)
        return tools

    def _tool(self, field: str, tool: Any) -> None:
        function = tool
        if type(tool) is dict and "function" in tool:
            field, function = f"{field}.function", tool["function"]
        if type(function) is not dict or not function.get("name"):
            message = f'is {described(function)}; allowed: {{"name": "…", "description": "…", "parameters": {{…}}}}'
            self._flaw(field, message, "bad-tool")
            return
        for key, kind, allowed in (
            ("name", str, "text"),
            ("description", str, "text"),
            ("parameters", dict, "a JSON schema, which is an object"),
        ):
            value = function.get(key)
            # Tables fill what a tool lacks with null.
            if value is not None and type(value) is not kind:
                self._flaw(f"{field}.{key}", f"is {described(value)}; allowed: {allowed}", "bad-tool")

    def _role_names(self, role: str, index: int) -> tuple[str, Mapping[str, str]]:
        """Return what the row calls the role of a message, and the file's names of roles."""
        if self.draft.role_names is None:
            return role, {}
        named, names = self.draft.role_names()
        return named[index], names


# Content whose parts have been complained of already.
_ODD = object()
