"""Rows out of every kind of file, with their places; what comes with a warning; and that nothing raises."""

import io
import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seeklet.finetune.data.problems import Problem
from seeklet.finetune.data.read import read, size_in_bytes
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.settings import DataSettings
from tests.finetune.data.malformed import ANSWER, BOM, CALL, GOOD, USER, chat, said

PAIR = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def read_all(path: Path, **settings) -> tuple[list[Row], list[Problem]]:
    items = list(read(DataSettings(train=(str(path),), **settings)))
    rows = [item for item in items if isinstance(item, Row)]
    return rows, [item for item in items if isinstance(item, Problem)]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD + b"\n" + chat(USER, ANSWER, USER, ANSWER))
    rows, problems = read_all(path)
    assert problems == []
    assert rows == [
        Row([USER, ANSWER], None, Source(str(path), 1)),
        Row([USER, ANSWER, USER, ANSWER], None, Source(str(path), 2)),
    ]


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_warnings(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", BOM + GOOD + b"\r\n\r\n" + GOOD + b"\r\n\n")
    rows, problems = read_all(path)
    assert [row.source.line for row in rows] == [1, 3]
    assert [(str(problem.source), problem.severity, problem.kind) for problem in problems] == [
        (f"{path}:1", "warning", "bom"),
        (f"{path}:2", "warning", "blank-lines"),
        (f"{path}:1", "warning", "crlf"),
    ]
    assert "the first of 3 such lines" in problems[2].message


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 100])
def test_lines_do_not_depend_on_where_reads_end(chunk_bytes: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("seeklet.finetune.data.lines.CHUNK_BYTES", max(chunk_bytes, 3))
    monkeypatch.setattr("seeklet.finetune.data.json_array.CHUNK_BYTES", chunk_bytes)
    content = [chat(USER, said("assistant", "x" * length)) for length in range(60)]
    lines = written(tmp_path / "a.jsonl", BOM + b"\n".join(content))
    rows, problems = read_all(lines)
    assert [row.source.line for row in rows] == list(range(2, 61))
    # The first row has an empty answer.
    assert [(problem.kind, problem.source.line) for problem in problems] == [("bom", 1), ("empty-turn", 1)]
    array = written(tmp_path / "a.json", b"[" + b",\n".join(content) + b"]")
    assert [row.messages for row in read_all(array)[0]] == [row.messages for row in rows]
    assert [row.source.line for row in read_all(array)[0]] == list(range(2, 61))


def test_a_json_array_also_over_many_lines(tmp_path: Path) -> None:
    content = json.dumps([{"question": 'a "b" [c', "answer": "}\\"}, {"question": "d", "answer": "e"}], indent=2)
    rows, problems = read_all(written(tmp_path / "a.json", BOM + content.encode()))
    assert [problem.kind for problem in problems] == ["bom"]
    assert [[message["content"] for message in row.messages] for row in rows] == [['a "b" [c', "}\\"], ["d", "e"]]
    assert [row.source.line for row in rows] == [2, 6]


def test_json_lines_by_the_name_of_json(tmp_path: Path) -> None:
    rows, problems = read_all(written(tmp_path / "a.json", GOOD + b"\n" + GOOD))
    assert (len(rows), problems) == (2, [])
    assert len(read_all(written(tmp_path / "b.json", GOOD))[0]) == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_with_quotes_newlines_and_any_delimiter(delimiter: str, tmp_path: Path) -> None:
    text = 'question,answer\r\n"Where,\r\nthen?","He said ""here"""\r\n\r\nd,e\r\n'.replace(",", delimiter)
    rows, problems = read_all(written(tmp_path / "a.csv", text))
    assert problems == []
    asked = ["Where" + delimiter + "\nthen?", 'He said "here"']
    assert [[message["content"] for message in row.messages] for row in rows] == [asked, ["d", "e"]]
    assert [row.source.line for row in rows] == [2, 5]


def test_csv_goes_on_after_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    rows, problems = read_all(written(tmp_path / "a.csv", 'question,answer\na,b\n"c,d\ne,f\ng,h\n'))
    assert [row.source.line for row in rows] == [2, 4, 5]
    assert [(problem.source.line, problem.kind) for problem in problems] == [(3, "unclosed-quote")]


def test_csv_with_a_cell_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    rows, problems = read_all(written(tmp_path / "a.csv", "question,answer\nWhere?," + "x" * 500_000 + "\n"))
    assert problems == []
    assert len(rows[0].messages[1]["content"]) == 500_000


def test_csv_with_conversations_as_json(tmp_path: Path) -> None:
    cell = json.dumps([USER, ANSWER]).replace('"', '""')
    rows, problems = read_all(written(tmp_path / "a.csv", f'id,messages\n1,"{cell}"\n'))
    assert problems == []
    assert rows[0].messages == [USER, ANSWER]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["Where?"] * 3000, "answer": ["Here."] * 3000, "id": range(3000)}), path)
    rows, problems = read_all(path)
    assert problems == []
    assert rows[0] == Row(PAIR, None, Source(str(path), 1))
    assert [row.source.line for row in rows] == list(range(1, 3001))


def test_parquet_fills_what_a_message_lacks_with_null(tmp_path: Path) -> None:
    told = said("tool", "3", tool_call_id="c1")
    conversations = [[USER, ANSWER], [USER, CALL | {"content": None}, told, ANSWER]]
    pq.write_table(pa.table({"messages": pa.array(conversations)}), tmp_path / "a.parquet")
    rows, problems = read_all(tmp_path / "a.parquet")
    assert problems == []
    assert [row.messages for row in rows] == [[USER, ANSWER], [USER, CALL, told, ANSWER]]


def test_a_system_message_of_the_recipe(tmp_path: Path) -> None:
    own = said("system", "Be kind.")
    path = written(tmp_path / "a.jsonl", GOOD + b"\n" + chat(own, USER, ANSWER))
    rows, _ = read_all(path, system="Be brief.")
    assert [row.messages for row in rows] == [[said("system", "Be brief."), USER, ANSWER], [own, USER, ANSWER]]


def test_the_first_error_of_a_row_carries_the_row_as_it_stood(tmp_path: Path) -> None:
    bad = [b'{"messages": [', chat(USER, USER, said("agent", "x")), GOOD.replace(b"On", b"\xdcber")]
    _, problems = read_all(written(tmp_path / "a.jsonl", b"\n".join(bad) + b"\n"))
    raw = [problem.raw.encode("utf-8", "surrogateescape") for problem in problems if problem.raw]
    assert raw == bad
    assert len(problems) == 4
    pq.write_table(pa.table({"question": ["Where?"], "answer": [""]}), tmp_path / "a.parquet")
    (problem,) = read_all(tmp_path / "a.parquet")[1]
    assert json.loads(problem.raw) == {"question": "Where?", "answer": ""}


def test_rows_with_warnings_follow_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", chat(USER, ANSWER, USER))
    problem, row = read(DataSettings(train=(str(path),)))
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.severity, problem.raw) == ("ends-without-answer", "warning", "")
    assert isinstance(row, Row)


def test_progress_adds_up_to_the_size(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "a.jsonl", b"\n".join([GOOD] * 5000)),
        written(tmp_path / "b.json", b"[" + b",".join([GOOD] * 5000) + b"]"),
        written(tmp_path / "c.csv", b"question,answer\n" + b"a,b\n" * 3000),
        tmp_path / "d.parquet",
    ]
    pq.write_table(pa.table({"question": ["Where?"] * 3000, "answer": ["Here."] * 3000}), paths[-1])
    names = tuple(map(str, paths))
    told: list[int] = []
    assert sum(isinstance(item, Row) for item in read(DataSettings(train=names), advance=told.append)) == 16_000
    assert sum(told) == size_in_bytes(names) == sum(path.stat().st_size for path in paths)
    assert size_in_bytes(["hub:a/b"]) is None


def test_validation_files_are_read_by_name(tmp_path: Path) -> None:
    train, validation = (str(written(tmp_path / name, GOOD)) for name in ("a.jsonl", "b.jsonl"))
    settings = DataSettings(train=(train,), validation=(validation,))
    assert [row.source.file for row in read(settings, [validation]) if isinstance(row, Row)] == [validation]


def _table(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


_SOUND = {
    "a.jsonl": b"\n".join([GOOD, chat(USER, CALL, said("tool", "3"), ANSWER, tools=[{"name": "track"}])]),
    "b.jsonl": b'{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '
    b'"{\\"name\\": \\"f\\"}"}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}], "system": "c"}',
    "c.json": b"[\n" + GOOD + b",\n" + GOOD + b"]",
    "d.csv": b'question,answer,system\n"a\n""b""",c,d\ne,f,\n"g,1",h,"i"\n',
    "e.parquet": _table([{"prompt": [USER], "completion": [ANSWER]}] * 3),
}
_PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\0", b"\xff", b"null", b"1", b"\n", b"\r", b":", b'""', b"{}"]


@pytest.mark.parametrize("name", _SOUND)
def test_nothing_raises_whatever_is_damaged(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    for _ in range(200):
        content = bytearray(_SOUND[name])
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(content) + 1)
            content[start : start + rng.choice([0, 0, 1, 5, 30])] = rng.choice(_PIECES)
        rows, problems = read_all(written(tmp_path / name, bytes(content)))
        # Every row is one that chat templates can take.
        assert all(message["role"] and type(message["content"]) is str for row in rows for message in row.messages)
        assert rows or problems
        assert all(str(problem).isprintable() for problem in problems)


@pytest.mark.parametrize("line", [b'a","c\n', b'a,"b\n', b'"a, b\n', b'a,b\nq","c\n'])
def test_wrong_quotes_take_time_in_proportion_to_the_file(line: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"question,answer\n" + line * 30_000)
    started = time.process_time()
    _, problems = read_all(path)
    assert len(problems) >= 29_999
    # Each row once more for each row would be half a billion: minutes.
    assert time.process_time() - started < 10


def test_tsv_is_parted_by_tabs_whatever_the_header_has_more_of(tmp_path: Path) -> None:
    content = "question\tanswer\tid, old, new\nWhere, then?\tHere, there.\t1\n"
    rows, problems = read_all(written(tmp_path / "a.tsv", content))
    assert problems == []
    assert [message["content"] for message in rows[0].messages] == ["Where, then?", "Here, there."]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.jsonl", GOOD)
    (row,) = read(DataSettings(train=("~/a.jsonl",)))
    assert row.source == Source("~/a.jsonl", 1)
    (problem,) = read(DataSettings(train=("~/b.jsonl",)))
    assert str(problem) == '~/b.jsonl: no such file; did you mean "~/a.jsonl"?'
