"""Data sets of the Hub, streamed from a server over HTTP by the command line itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value

from seeklet.finetune.data.hub_rows import HubName, parse_hub_name
from seeklet.finetune.data.problems import Problem
from tests.finetune.data.hub import COMMIT, serve_datasets
from tests.finetune.data.malformed import GOOD, USER, chat, said


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hub:firm/support", HubName("firm/support", None, None, "train")),
        ("hub:firm/support:test", HubName("firm/support", None, None, "test")),
        ("hub:firm/support/calls@v1.2:dev", HubName("firm/support", "calls", "v1.2", "dev")),
        ("hub:firm/support@refs/pr/1", HubName("firm/support", None, "refs/pr/1", "train")),
    ],
)
def test_names_of_data_sets(name: str, parts: HubName) -> None:
    assert parse_hub_name(name) == parts


@pytest.mark.parametrize(
    "name",
    ["hub:", "hub:support", "hub:a/b/c/d", "hub:a/b:", "hub:a/b:x:y", "hub:a/b:train[:9]", "hub:../b", "hub:a b/c"],
)
def test_names_that_are_none(name: str) -> None:
    problem = parse_hub_name(name)
    assert isinstance(problem, Problem)
    assert str(problem) == (
        f"{name}: is not the name of a data set; allowed: hub:owner/name[/config][@revision][:split]"
    )


@pytest.mark.slow
def test_data_sets_are_streamed(tmp_path: Path) -> None:
    rows = [chat(USER, said("assistant", f"This is {i}.")) for i in range(50)] + [chat(USER, said("agent", "Hi"))]
    datasets = {
        "firm/support": {"train.jsonl": b"\n".join(rows), "test.jsonl": GOOD},
        "firm/broken": {"train.jsonl": b"\n".join([GOOD] * 3 + [b"{"])},
    }
    sound = ("hub:firm/support:test", f"hub:firm/support@{COMMIT}:test")
    unsound = {
        "hub:firm/support:train": (51, "unknown-role", 'messages[1].role is "agent"'),
        "hub:firm/nothing": (0, "unreadable-dataset", "Repository Not Found"),
        "hub:firm/support:validation": (0, "unreadable-dataset", "Bad split: validation"),
        "hub:firm/support@v9": (0, "unreadable-dataset", "v9"),
        "hub:firm/broken": (0, "unreadable-dataset", "cannot be read"),
    }
    with serve_datasets(datasets) as endpoint:
        code, report = check(sound, endpoint, tmp_path)
        assert (code, report["rows"], report["num_errors"]) == (0, 2, 0)
        code, report = check(tuple(unsound), endpoint, tmp_path)
    assert code == 2
    assert report["files"][0] == {
        "name": "hub:firm/support:train",
        "for_validation": False,
        "rows": 51,
        "bad_rows": 1,
        "shape": "messages",
        "columns": {"messages": "messages"},
        "ignored_columns": [],
    }
    errors = [
        (kind["kind"], shown) for kind in report["problems"] for shown in kind["shown"] if kind["severity"] == "error"
    ]
    assert [shown["file"] for _, shown in errors] == list(unsound)
    for kind, shown in errors:
        line, expected_kind, words = unsound[shown["file"]]
        assert (shown["line"], kind) == (line, expected_kind)
        assert words in f"{shown['field']} {shown['message']}"


@pytest.mark.slow
def test_columns_that_nothing_reads_are_not_decoded(tmp_path: Path) -> None:
    columns = {"question": Value("string"), "picture": Image(), "answer": Value("string")}
    values = {"question": ["How?"], "picture": [{"bytes": b"no picture", "path": None}], "answer": ["So."]}
    pq.write_table(pa.table(values, schema=Features(columns).arrow_schema), tmp_path / "train.parquet")
    with serve_datasets({"firm/pictures": {"train.parquet": (tmp_path / "train.parquet").read_bytes()}}) as endpoint:
        code, report = check(("hub:firm/pictures",), endpoint, tmp_path)
    assert (code, report["rows"], report["problems"]) == (0, 1, [])
    file = report["files"][0]
    assert (file["columns"], file["ignored_columns"]) == ({"question": "question", "answer": "answer"}, ["picture"])


def check(names: tuple[str, ...], endpoint: str, folder: Path) -> tuple[int, dict]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "seeklet.finetune", "data", "check", *names, "--json", str(folder / "report.json")]
    process = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", timeout=250)
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, json.loads((folder / "report.json").read_text())
