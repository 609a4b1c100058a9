"""Files of every kind that are wrong in one way each, and what the check is to say of each: made when a test asks."""

import gzip
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.finetune.data.malformed import GOOD, MALFORMED_LINES, Malformed


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
    Malformed(
        "years.parquet",
        _parquet(pa.table({"question": ["a"], "answer": ["b"], "context": pa.array([2**31 - 1], pa.date32())})),
        "bad-parquet",
        0,
        "is not readable Parquet",
    ),
    Malformed(
        "twice.parquet",
        _parquet(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["question", "answer", "answer"])),
        "bad-header",
        0,
        'has two columns named "answer"',
    ),
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

MALFORMED = [*MALFORMED_LINES, *_ARRAYS, *_TABLES, *_FILES]
