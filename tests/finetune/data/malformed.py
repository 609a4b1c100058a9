"""Files that are wrong in one way each, and what the check is to say of each: made when a test asks for them."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

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


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _questions(number: int = 100) -> bytes:
    return _parquet(pa.table({"question": [f"How many is {i}?" for i in range(number)], "answer": ["Many."] * number}))


def _damaged_parquet() -> bytes:
    data = bytearray(_questions())
    data[10:200] = b"\xff" * 190
    return bytes(data)


def _loop(path: Path) -> None:
    other = path.with_name("other-" + path.name)
    path.symlink_to(other)
    other.symlink_to(path)


def _unreadable(path: Path) -> None:
    path.write_bytes(GOOD)
    path.chmod(0)


GOOD = chat(USER, ANSWER)
CALL = said("assistant", "", tool_calls=[{"function": {"name": "track", "arguments": {"id": 7}}}])

_LINES = [
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
    Malformed("terminal.jsonl", lines(chat(said("\x1b[2J", "a"), ANSWER)), "unknown-role", 2, r'role is "\x1b[2J"'),
]

_ARRAYS = [
    Malformed(
        "cut.json", b"[\n" + GOOD + b",\n" + GOOD[:-9], "truncated", 3, "in the middle of the row that starts here"
    ),
    Malformed("open.json", b"[\n" + GOOD + b"\n", "truncated", 3, 'no closing "]"'),
    Malformed("no-comma.json", b"[\n" + GOOD + b"\n" + GOOD + b"]", "bad-json", 3, "no comma stands between"),
    Malformed("last-comma.json", b"[\n" + GOOD + b",\n]", "bad-json", 3, "none after the last row"),
    Malformed("inside.json", b"[\n" + GOOD[:-1] + b",}\n]", "bad-json", 2, "trailing comma"),
    Malformed("after.json", b"[" + GOOD + b"]\n]", "bad-json", 2, "one array a file"),
    Malformed("scalar.json", b"[\n" + GOOD + b",\n12\n]", "wrong-type", 3, "row is 12 (a number)"),
    Malformed("deep.json", b"[\n" + b"[" * 100_000, "truncated", 2, "a quote or bracket is not closed"),
    Malformed("object.json", b'{\n "data": []\n}', "not-rows", 0, "an array of rows"),
    Malformed("long.json", b'[{"messages": "' + b"x" * 10_000_000 + b'"}]', "line-too-long", 1, "8,388,608 bytes"),
    Malformed("none.json", b"[]", "no-rows", 0, "has no rows"),
    Malformed("latin1.json", b"[\n" + GOOD.replace(b"On", b"\xdcber") + b"]", "invalid-utf8", 2, "0xDC"),
]

_TABLES = [
    Malformed("short.csv", b"question,answer\na,b\nc\n", "wrong-field-count", 3, "has 1 fields; the header has 2"),
    Malformed("wide.csv", b"question,answer\na,b,c\n", "wrong-field-count", 2, "needs double quotes"),
    Malformed("quote.csv", b'question,answer\na,b\n"c,d\n', "unclosed-quote", 3, "is never closed"),
    Malformed(
        "long-quote.csv",
        b'question,answer\n"c,d\n' + (b"a," + b"b" * 1000 + b"\n") * 10_000,
        "unclosed-quote",
        2,
        "never closed",
    ),
    Malformed("after-quote.csv", b'question,answer\n"a"b,c\n', "bad-csv", 2, "quotes inside a field are doubled"),
    Malformed("latin1.csv", b"question,answer\nWo?,\xdcberall\n", "invalid-utf8", 2, "0xDC"),
    Malformed("nul.csv", b"question,answer\na,b\0\n", "nul-character", 2, "answer holds a NUL character"),
    Malformed("empty-cell.csv", b"question,answer\na,\n", "empty-turn", 2, "answer is empty"),
    Malformed("columns.csv", b"Frage;Antwort\na;b\n", "unknown-shape", 1, "--columns question=Frage,answer=Antwort"),
    Malformed("repeated.csv", b"question,answer,answer\na,b,c\n", "bad-header", 1, '"answer" more than once'),
    Malformed("unnamed.csv", b"question,answer,,\na,b,,\n", "bad-header", 1, "columns without a name"),
    Malformed("header.csv", b"question,answer\n", "no-rows", 0, "has no rows"),
    Malformed("mac.csv", b"question,answer\ra,b\rc,d", "bad-csv", 1, "carriage return"),
    Malformed("cells.csv", b"messages\n[{broken}]\n", "wrong-type", 2, 'messages is "[{broken}]"'),
    Malformed("cut.parquet", _questions()[:-30], "bad-parquet", 0, "is not readable Parquet from the start"),
    Malformed("damaged.parquet", _damaged_parquet(), "bad-parquet", 0, "is not readable Parquet"),
    Malformed("fake.parquet", b"question,answer\n", "wrong-content", 0, "it starts with"),
    Malformed("magic.parquet", b"PAR1", "bad-parquet", 0, "copied or downloaded in full"),
    Malformed("columns.parquet", _parquet(pa.table({"x": [1]})), "unknown-shape", 0, 'has the keys "x"'),
    Malformed(
        "null.parquet",
        _parquet(pa.table({"question": ["a"], "answer": pa.array([None], pa.string())})),
        "empty-turn",
        1,
        "answer is null",
    ),
    Malformed(
        "bytes.parquet", _parquet(pa.table({"question": ["a"], "answer": [b"b"]})), "wrong-type", 1, "binary data"
    ),
]

_FILES = [
    Malformed("nothing.jsonl", b"", "empty-file", 0, "is empty"),
    Malformed("spaces.jsonl", b" \n\n", "empty-file", 0, "blank space"),
    Malformed("absent.jsonl", lambda path: path.with_name("absence.jsonl").touch(), "missing-file", 0, "did you mean"),
    Malformed("nowhere/file.jsonl", lambda path: path.parent.rmdir(), "missing-file", 0, "nor is there a folder"),
    Malformed("../outside.jsonl", lambda path: None, "missing-file", 0, "no such file"),
    Malformed("folder", lambda path: path.mkdir(), "not-a-file", 0, "is a folder"),
    Malformed("pipe.jsonl", os.mkfifo, "not-a-file", 0, "is a pipe"),
    Malformed("loop.jsonl", _loop, "link-loop", 0, "leads back to itself"),
    Malformed("dangling.jsonl", lambda path: path.symlink_to("gone.jsonl"), "missing-file", 0, "does not exist"),
    Malformed("forbidden.jsonl", _unreadable, "permission-denied", 0, "may not be read"),
    Malformed("zipped.jsonl", gzip.compress(GOOD), "wrong-content", 0, "gunzip"),
    Malformed("archive.jsonl.gz", gzip.compress(GOOD), "unknown-file-type", 0, "gunzip"),
    Malformed("sheet.csv", b"PK\x03\x04" + bytes(100), "wrong-content", 0, "CSV UTF-8"),
    Malformed("sheet.xlsx", b"PK\x03\x04" + bytes(100), "unknown-file-type", 0, "save the sheet as CSV UTF-8"),
    Malformed("binary.jsonl", bytes(range(1, 256)) * 8 + bytes(1000), "binary", 0, "binary data"),
    Malformed("utf16.jsonl", GOOD.decode().encode("utf-16"), "wrong-content", 0, "UTF-16"),
    Malformed("utf16-bare.jsonl", GOOD.decode().encode("utf-16-le"), "binary", 0, "UTF-16"),
    Malformed("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "wrong-content", 0, "git lfs pull"),
    Malformed("array.jsonl", b"[\n" + GOOD + b"\n]", "wrong-content", 0, "name it .json"),
    Malformed("renamed.jsonl", _questions(), "wrong-content", 0, "name it .parquet"),
    Malformed("notes.txt", b"hello", "unknown-file-type", 0, ".jsonl, .ndjson, .json"),
]

MALFORMED = [*_LINES, *_ARRAYS, *_TABLES, *_FILES]
