"""JSON lines that are wrong in one way each, and what the check is to say of each; malformed_files.py has the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
USER = {"role": "user", "content": "Where is my parcel?"}
ANSWER = {"role": "assistant", "content": "On its way."}


class Malformed(NamedTuple):
    """A file, and the one error it is to be refused for: its kind, its line (0 for the whole file), and words of it."""

    name: str
    make: bytes | Callable[[Path], object]
    kind: str
    line: int
    words: str
    options: tuple[str, ...] = ()

    def path(self, folder: Path) -> Path:
        """Return the file, made in `folder`."""
        path = folder / self.name
        path.parent.mkdir(exist_ok=True)
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)
        return path


def chat(*messages: object, **more: object) -> bytes:
    """Return a row of chat messages as JSON."""
    return json.dumps({"messages": messages, **more}).encode()


def lines(*rows: bytes) -> bytes:
    """Return JSON lines: a sound row first, so that `rows` start on line 2."""
    return b"\n".join([GOOD, *rows, b""])


def said(role: object, content: object, **more: object) -> dict[str, object]:
    """Return one message."""
    return {"role": role, "content": content, **more}


GOOD = chat(USER, ANSWER)
CALL = said("assistant", "", tool_calls=[{"function": {"name": "track", "arguments": {"id": 7}}}])

MALFORMED_LINES = [
    # Not JSON
    Malformed("bracket.jsonl", lines(b'{"messages": ['), "bad-json", 2, "unexpected end of data at column 15"),
    Malformed("comma.jsonl", lines(GOOD[:-1] + b",}"), "bad-json", 2, "trailing comma"),
    Malformed("python.jsonl", lines(b"{'messages': []}"), "bad-json", 2, "strings need double quotes"),
    Malformed("true.jsonl", lines(b'{"messages": True}'), "bad-json", 2, "JSON writes true, false, null"),
    Malformed("nan.jsonl", lines(b'{"messages": [], "score": NaN}'), "bad-json", 2, "use null"),
    Malformed("infinity.jsonl", lines(b'{"messages": [], "score": -Infinity}'), "bad-json", 2, "use null"),
    Malformed("two-rows.jsonl", lines(GOOD + GOOD), "bad-json", 2, "one row a line"),
    Malformed("comment.jsonl", lines(GOOD + b" // checked"), "bad-json", 2, "after document"),
    Malformed("text.jsonl", lines(b"Where is my parcel?"), "bad-json", 2, "at column 1"),
    Malformed("pretty.jsonl", b'{\n  "messages": []\n}\n', "bad-json", 1, "one row must stand on one line"),
    Malformed("tab.jsonl", lines(b'{"messages": "a\tb"}'), "bad-json", 2, "control character"),
    Malformed("escape.jsonl", lines(rb'{"messages": "a\qb"}'), "bad-json", 2, "escape"),
    Malformed("surrogate.jsonl", lines(rb'{"messages": "\ud83d"}'), "bad-json", 2, "surrogate"),
    Malformed("huge-number.jsonl", lines(b'{"messages": ' + b"9" * 5000 + b"}"), "bad-json", 2, "infinity"),
    Malformed("mac.jsonl", GOOD + b"\r" + GOOD, "bad-json", 1, "one row a line"),
    Malformed("cut.jsonl", lines(GOOD)[:-20], "truncated", 2, "the file ends in the middle of this row"),
    Malformed("deep.jsonl", lines(b'{"messages": ' + b"[" * 100_000), "too-deep", 2, "64 levels"),
    Malformed("closed-deep.jsonl", lines(b'{"a":' * 900 + b"1" + b"}" * 900), "too-deep", 2, "64 levels"),
    Malformed("twice.jsonl", lines(b'{"messages": [], "messages": []}'), "duplicate-key", 2, '"messages"'),
    Malformed(
        "twice-inside.jsonl",
        lines(b'{"messages": [{"role": "user", "content": "a", "role": "user"}]}'),
        "duplicate-key",
        2,
        '"role" more than once',
    ),
    Malformed("twice-a-number.jsonl", lines(GOOD[:-1] + b', "id": 1, "id": 2}'), "duplicate-key", 2, '"id" more than'),
    Malformed("twice-a-text.jsonl", lines(GOOD[:-1] + b', "id": "a", "id": "b"}'), "duplicate-key", 2, '"id" more'),
    Malformed(
        "twice-a-weight.jsonl",
        lines(GOOD.replace(b'"role": "user"', b'"role": "user", "weight": 1, "weight": 1')),
        "duplicate-key",
        2,
        '"weight" more than once',
    ),
    # Not UTF-8, or more than text
    Malformed("latin1.jsonl", lines(GOOD.replace(b"On", b"\xdcber")), "invalid-utf8", 2, "0xDC at byte 101"),
    Malformed("cut-utf8.jsonl", lines(GOOD.replace(b"On", b"\xe2\x82")), "invalid-utf8", 2, "not UTF-8"),
    Malformed("nul.jsonl", lines(GOOD.replace(b"On", b"O\0n")), "nul-byte", 2, "NUL byte at byte 102"),
    Malformed("joined.jsonl", lines(BOM + GOOD), "bom", 2, "were several files joined"),
    Malformed("nul-text.jsonl", lines(chat(USER, said("assistant", "a\0b"))), "nul-character", 2, r"\x00"),
    Malformed("long.jsonl", lines(b"x" * 10_000_000), "line-too-long", 2, "10,000,000 bytes"),
    Malformed("long-end.jsonl", GOOD + b"\n" + b" " * 10_000_000, "line-too-long", 2, "10,000,000 bytes"),
    # JSON, but no conversation
    Malformed("list.jsonl", lines(b"[1, 2]"), "wrong-type", 2, "row is a list of 2"),
    Malformed("string.jsonl", lines(b'"row"'), "wrong-type", 2, 'row is "row"'),
    Malformed("null.jsonl", lines(b"null"), "wrong-type", 2, "row is null"),
    Malformed("number.jsonl", lines(b'{"messages": 5}'), "wrong-type", 2, "messages is 5 (a number)"),
    Malformed("text-turns.jsonl", lines(b'{"messages": "hello"}'), "wrong-type", 2, 'messages is "hello"'),
    Malformed("no-turns.jsonl", lines(b'{"messages": []}'), "no-assistant", 2, "messages is an empty list"),
    Malformed("turn.jsonl", lines(chat("hello", ANSWER)), "wrong-type", 2, 'messages[0] is "hello"'),
    Malformed("content.jsonl", lines(chat(USER, said("assistant", 7))), "wrong-type", 2, "messages[1].content is 7"),
    Malformed("role-type.jsonl", lines(chat(said(1, "a"), ANSWER)), "wrong-type", 2, "messages[0].role is 1"),
    Malformed("empty.jsonl", lines(chat(said("user", ""), ANSWER)), "empty-turn", 2, "messages[0].content is empty"),
    Malformed("blank.jsonl", lines(chat(USER, said("assistant", " \n "))), "empty-turn", 2, "content is blank"),
    Malformed("null-turn.jsonl", lines(chat(USER, said("assistant", None))), "empty-turn", 2, "content is null"),
    Malformed("no-content.jsonl", lines(chat(USER, {"role": "assistant"})), "missing-key", 2, "has no content"),
    Malformed("no-role.jsonl", lines(chat(USER, {"content": "On its way."})), "missing-key", 2, "has no role"),
    Malformed(
        "agent.jsonl",
        lines(chat(USER, said("agent", "Hello"))),
        "unknown-role",
        2,
        'messages[1].role is "agent"; allowed: system, user, assistant, tool; did you mean "assistant"?',
    ),
    Malformed("asistant.jsonl", lines(chat(USER, said("asistant", "Hi"))), "unknown-role", 2, 'mean "assistant"?'),
    Malformed("capital.jsonl", lines(chat(said("User", "Hi"), ANSWER)), "unknown-role", 2, 'mean "user"?'),
    Malformed("only-user.jsonl", lines(chat(USER)), "no-assistant", 2, "only: user"),
    Malformed("greeting.jsonl", lines(chat(ANSWER, USER, ANSWER)), "role-order", 2, '"assistant" at the start'),
    Malformed("two-users.jsonl", lines(chat(USER, USER, ANSWER)), "role-order", 2, 'messages[1].role is "user" after'),
    Malformed("late-system.jsonl", lines(chat(USER, ANSWER, said("system", "Be kind."))), "role-order", 2, '"system"'),
    Malformed("no-call.jsonl", lines(chat(USER, said("tool", "3"), ANSWER)), "role-order", 2, '"tool" after "user"'),
    Malformed("no-result.jsonl", lines(chat(USER, CALL, USER, ANSWER)), "role-order", 2, "allowed there: tool"),
    Malformed(
        "call.jsonl", lines(chat(USER, said("assistant", "", tool_calls=[1]))), "bad-tool-call", 2, "calls[0] is 1"
    ),
    Malformed(
        "arguments.jsonl",
        lines(chat(USER, said("assistant", "", tool_calls=[{"name": "track", "arguments": "{id: 7}"}]))),
        "bad-tool-call",
        2,
        "tool_calls[0].arguments is not JSON",
    ),
    Malformed(
        "user-calls.jsonl",
        lines(chat(said("user", "a", tool_calls=CALL["tool_calls"]), ANSWER)),
        "misplaced-key",
        2,
        'stands in a turn of "user"',
    ),
    Malformed("tools.jsonl", lines(chat(USER, ANSWER, tools="none")), "wrong-type", 2, 'tools is "none"'),
    Malformed("tool.jsonl", lines(chat(USER, ANSWER, tools=["find"])), "bad-tool", 2, 'tools[0] is "find"'),
    Malformed(
        "function.jsonl",
        lines(chat(USER, ANSWER, tools=[{"function": "find"}])),
        "bad-tool",
        2,
        'tools[0].function is "find"; allowed: {"name"',
    ),
    Malformed(
        "unnamed-tool.jsonl",
        lines(chat(USER, ANSWER, tools=[{"function": {"description": "x"}}])),
        "bad-tool",
        2,
        'tools[0].function is an object with "description"',
    ),
    Malformed(
        "parameters.jsonl",
        lines(chat(USER, ANSWER, tools=[{"name": "find", "parameters": "id"}])),
        "bad-tool",
        2,
        'tools[0].parameters is "id"; allowed: a JSON schema',
    ),
    Malformed(
        "image.jsonl",
        lines(chat(said("user", [{"type": "image_url", "image_url": "a.png"}]), ANSWER)),
        "wrong-type",
        2,
        'messages[0].content[0] is "image_url"',
    ),
    # Columns
    Malformed("keys.jsonl", b'{"foo": 1, "bar": 2}\n', "unknown-shape", 1, 'has the keys "foo", "bar"'),
    Malformed("no-answer.jsonl", b'{"question": "Where?"}\n', "missing-column", 1, 'has no "answer"'),
    Malformed("misspelt.jsonl", b'{"prompt": "Where?", "completon": "Here."}\n', "missing-column", 1, "completon"),
    Malformed(
        "mixed.jsonl", lines(b'{"prompt": "a", "completion": "b"}'), "mixed-shapes", 2, "mixed.jsonl:1 is messages"
    ),
    Malformed("forced.jsonl", GOOD, "missing-column", 1, '"instruction"', ("--format", "alpaca")),
    Malformed("named.jsonl", GOOD, "missing-column", 1, '"Q" (for question)', ("--columns", "question=Q,answer=A")),
    Malformed("null-answer.jsonl", b'{"question": "Where?", "answer": null}\n', "empty-turn", 1, "answer is null"),
    Malformed("number-answer.jsonl", b'{"question": "How many?", "answer": 3}\n', "wrong-type", 1, "answer is 3"),
    Malformed(
        "sharegpt.jsonl",
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", "value": "b"}]}\n',
        "unknown-role",
        1,
        'conversations[1].from is "narrator"',
    ),
    Malformed(
        "sharegpt-order.jsonl",
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "user", "value": "b"}, '
        b'{"from": "gpt", "value": "c"}]}\n',
        "role-order",
        1,
        'conversations[1].from is "user" after "human"; allowed there: gpt, function_call; join turns',
    ),
    Malformed(
        "sharegpt-questions.jsonl",
        b'{"conversations": [{"from": "human", "value": "a"}], "system": "b"}\n',
        "no-assistant",
        1,
        "no assistant turn to learn from, only: system, human",
    ),
    Malformed("terminal.jsonl", lines(chat(said("\x1b[2J", "a"), ANSWER)), "unknown-role", 2, r'role is "\x1b[2J"'),
]
