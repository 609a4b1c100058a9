"""What a check says of sound and of doubtful data, in its report, on the terminal, as JSON and as a figure."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from seeklet.finetune.data.check import CheckReport, check_data
from seeklet.finetune.data.check_plot import draw_check
from seeklet.finetune.data.counts import Counts, Histogram
from seeklet.finetune.data.repeated_rows import RepeatedRows
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.data.summary import as_json, print_report
from seeklet.finetune.errors import DataError
from tests.finetune.data.malformed import ANSWER, CALL, USER, chat, said

LONG = "My parcel has not come although it is Monday already, and nobody in your office answers the telephone."


def written(path: Path, *rows: bytes) -> str:
    path.write_bytes(b"\n".join(rows) + b"\n")
    return str(path)


def pair(question: str, answer: str) -> bytes:
    return json.dumps({"question": question, "answer": answer}).encode()


def found(report: CheckReport) -> list[tuple[str, str, int, list[str]]]:
    """Return severity, kind, count and places (without the folder) of every kind of problem."""
    return [
        (severity, kind, number, [f"{Path(p.source.file).name}:{p.source.line}" for p in problems])
        for severity, kind, number, problems in report.problems.kinds()
    ]


def printed(report: CheckReport, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue] a StringIO


def test_sound_data(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "track"}}]
    path = written(
        tmp_path / "a.jsonl",
        chat(said("system", "Be kind."), USER, ANSWER, id=1),
        chat(said("user", "And mine?"), CALL, said("tool", "3"), ANSWER | {"reasoning_content": "Hm."}, tools=tools),
    )
    report = check_data(DataSettings(train=(path,)))
    assert found(report) == []
    (file,) = report.files
    assert (file.rows, file.bad_rows, file.columns, file.ignored) == (
        2,
        0,
        {"messages": "messages", "tools": "tools"},
        ["id"],
    )
    assert dict(report.counts.roles) == {"system": 1, "user": 2, "assistant": 3, "tool": 1}
    assert (report.counts.turns.total, report.counts.turns.maximum) == (7, 4)
    assert (report.counts.with_tools, report.counts.with_reasoning) == (1, 1)
    assert report.counts.characters.total == sum(
        map(len, ["Be kind.", USER["content"], ANSWER["content"] * 2, "And mine?3Hm."])
    )
    assert "0 errors, 0 warnings; fit for training" in printed(report)


def test_columns_that_nothing_reads_are_told_of_in_every_kind_of_file(tmp_path: Path) -> None:
    columns = {"question": ["How?"], "lang": ["en"], "answer": ["So."]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("question,lang,answer\nHow?,en,So.\n")
    (tmp_path / "a.json").write_text('[{"question": "How?", "lang": "en", "answer": "So."}]')
    names = tuple(str(tmp_path / name) for name in ("a.parquet", "a.csv", "a.json"))
    assert [file.ignored for file in check_data(DataSettings(train=names)).files] == [["lang"]] * 3


def test_repeated_rows_are_warnings_by_default(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", pair("Where?", "Here."), pair("a", "b"), pair("where? ", "HERE."), pair("a", "b")
    )
    report = check_data(DataSettings(train=(path,)))
    assert found(report) == [("warning", "duplicate", 2, ["a.jsonl:3", "a.jsonl:4"])]
    assert f"{path}:3: says the same as {path}:1" in printed(report)
    assert found(check_data(DataSettings(train=(path,), on_duplicate="error")))[0][0] == "error"


def test_near_duplicates(tmp_path: Path) -> None:
    rows = [pair(LONG, "We shall look into it."), pair("Ok?", "Yes."), pair(LONG + "!", "We shall look into it.")]
    path = written(tmp_path / "a.jsonl", *rows)
    assert found(check_data(DataSettings(train=(path,)))) == [("warning", "near-duplicate", 1, ["a.jsonl:3"])]
    report = check_data(DataSettings(train=(path,)), near_duplicates=False)
    assert found(report) == []
    assert "Near-duplicates were looked for nowhere" in printed(report)


def test_near_duplicates_are_looked_for_among_the_first_rows_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.data.repeated_rows.NEAR_ROWS", 5)
    for near, expected in ((None, 5), (True, 9), (False, 0)):
        repeated = RepeatedRows(["a"], 1, near, "warning")
        for line in range(1, 10):
            repeated.add(Row([said("user", str(line)), ANSWER], None, Source("a", line)), 0)
        assert repeated.near_rows == expected


def test_leaks_from_training_to_validation(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", pair("a", "b"), pair("c", "d"), pair(LONG, "Sorry."), pair("a", "b"))
    validation = written(
        tmp_path / "validation.jsonl",
        pair("x", "y"),
        pair("A", "B"),
        pair("c", "e"),
        pair(LONG + "!", "Sorry."),
        pair("x", "y"),
    )
    report = check_data(DataSettings(train=(train,), validation=(validation,)))
    assert found(report) == [
        ("error", "leak", 1, ["validation.jsonl:2"]),
        ("warning", "duplicate", 2, ["train.jsonl:4", "validation.jsonl:5"]),
        ("warning", "leaked-prompt", 1, ["validation.jsonl:3"]),
        ("warning", "near-leak", 1, ["validation.jsonl:4"]),
    ]
    text = printed(report)
    assert f"{validation}:2: is in the training data too: {train}:1" in text
    assert f"{validation}:3: has the question of a training row, with another answer: {train}:2" in text
    assert f"{validation}:4: says nearly the same as training row {train}:3 (80% alike or more)" in text


def test_only_so_many_of_a_kind_are_shown_and_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *[pair("a", "b")] * 100, *[pair("c", "")] * 30)
    report = check_data(DataSettings(train=(path,)), per_kind=3)
    assert found(report) == [
        ("error", "empty-turn", 30, ["a.jsonl:101", "a.jsonl:102", "a.jsonl:103"]),
        ("warning", "duplicate", 99, ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]),
    ]
    assert (report.files[0].rows, report.files[0].bad_rows) == (130, 30)
    text = printed(report)
    assert "… and 27 more" in text
    assert "130 rows read" in text
    assert "30 errors, 99 warnings; 30 rows with errors; not fit for training" in text


def test_secrets_are_found_and_not_repeated(tmp_path: Path) -> None:
    mail = "jane.doe" + "@" + "firm-mail.com"
    path = written(tmp_path / "a.jsonl", pair("Who?", "Here."), pair("Whom?", f"Write to {mail} today."))
    report = check_data(DataSettings(train=(path,)))
    assert found(report) == [("warning", "email", 1, ["a.jsonl:2"])]
    text = printed(report)
    assert f"{path}:2: answer holds what looks like email (characters 10 to 31)" in text
    assert mail not in text + json.dumps(as_json(report))
    assert found(check_data(DataSettings(train=(path,), on_secret="error")))[0][0] == "error"
    off = check_data(DataSettings(train=(path,), scan=False))
    assert found(off) == []
    assert "were not looked for" in printed(off)


def test_markup_in_data_is_printed_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", chat(said("[bold red]x[/]", "a"), ANSWER))
    assert 'messages[0].role is "[bold red]x[/]"' in printed(check_data(DataSettings(train=(path,))))


def test_the_report_as_json(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pair("a", "b"), pair("c", ""))
    report = json.loads(json.dumps(as_json(check_data(DataSettings(train=(path,))))))
    assert (report["fit_for_training"], report["num_errors"], report["rows"], report["bad_rows"]) == (False, 1, 2, 1)
    assert report["files"][0]["shape"] == "question_answer"
    assert report["problems"] == [
        {
            "severity": "error",
            "kind": "empty-turn",
            "count": 1,
            "shown": [{"file": path, "line": 2, "field": "answer", "message": "is empty; allowed: some text"}],
        }
    ]


def test_the_figure_holds_every_row(tmp_path: Path) -> None:
    rows = [pair("a" * length, "b") for length in range(1, 400)] + [pair("a" * 100_000, "b")]
    settings = DataSettings(train=(written(tmp_path / "a.jsonl", *rows),))
    figure = draw_check(check_data(settings, near_duplicates=False))
    for axes in figure.axes:
        assert sum(patch.get_height() for patch in axes.patches) == 400  # pyright: ignore[reportAttributeAccessIssue]
    assert "most 100,001" in figure.axes[0].get_title()
    # One long row does not stretch the axis.
    assert figure.axes[0].get_xlim()[1] < 500


def test_a_wrong_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not columns of one shape"):
        check_data(DataSettings(train=(written(tmp_path / "a.jsonl", pair("a", "b")),), columns={"quesion": "Q"}))


def test_histograms_count_exactly() -> None:
    histogram = Histogram()
    for value in [5, 1, 1, 9, 4]:
        histogram.add(value)
    assert [histogram.percentile(percent) for percent in (1, 40, 50, 80, 99, 100)] == [1, 1, 4, 5, 9, 9]
    assert (histogram.mean, histogram.total, histogram.maximum) == (4.0, 20, 9)
    assert Histogram().percentile(50) == 0
    wide = Histogram(16)
    wide.add(20, times=3)
    assert (wide.percentile(50), wide.total) == (20, 60)


def test_many_orders_of_roles_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.data.counts._MAX_ORDERS", 3)
    counts = Counts()
    for length in range(1, 11):
        counts.add(Row([USER, ANSWER] * length, None, Source("a", length)))
        assert len(counts._orders) <= 3
    assert dict(counts.roles) == {"user": 55, "assistant": 55}
    assert (counts.turns.total, counts.turns.maximum, counts.rows) == (110, 20, 10)
