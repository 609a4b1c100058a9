"""The command itself, in real processes: a miniature run, refused arguments, and Ctrl-C."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from typer.testing import CliRunner

import seeklet
from seeklet.finetune.demo.__main__ import app
from seeklet.finetune.demo.task import ChainSums, parse_answer

COMMAND = [sys.executable, "-m", "seeklet.finetune.demo"]
MINIATURE = {
    "--steps": "3",
    "--test-problems": "4",
    "--validation-problems": "2",
    "--draft-prompts": "1",
    "--draft-repeats": "1",
    "--threads": "1",
    "--out": "out",
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A colourless, wide terminal, so that lines are not wrapped where a test looks for them.
PLAIN_TERMINAL = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=os.environ | PLAIN_TERMINAL, capture_output=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("demo")
    return run(*chain.from_iterable(MINIATURE.items()), cwd=folder), folder / "out"


@pytest.mark.slow
def test_miniature_run_ends_well(miniature) -> None:
    process, out = miniature
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics.jsonl",
        "model",
        "plots",
        "report.json",
        "report.md",
    ]
    for line in ("accuracy before", "accuracy after", "tokens per step", "same model", "report.md"):
        assert line in process.stdout


@pytest.mark.slow
def test_report_has_every_figure(miniature) -> None:
    _, out = miniature
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for moment in ("before", "after"):
        accuracy = report["accuracy"][moment]
        assert accuracy["total"] == 4
        assert 0 <= accuracy["low"] <= accuracy["value"] == accuracy["correct"] / 4 <= accuracy["high"] <= 1
    drafts = report["mtp_drafts"]
    assert drafts["identical_tokens"]
    assert drafts["tokens_per_step"] == pytest.approx(drafts["new_tokens"] / drafts["main_model_steps"])
    assert 1 <= drafts["tokens_per_step"] <= 2
    assert report["failed_checks"] == []
    assert report["training"]["steps_done"] == 3
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in MINIATURE.items() if name != "--out"}
    assert {name: str(value) for name, value in report["settings"].items()} == given | {"seed": "0"}
    installed = {name: metadata.version(name) for name in ("torch", "transformers")}
    assert report["versions"] == installed | {"seeklet": seeklet.__version__, "python": platform.python_version()}
    assert len(report["stages"]) == 7
    assert all(stage["wall_s"] > 0 for stage in report["stages"])
    task = ChainSums(seed=0, num_test=4, num_validation=2)
    answers = {problem.prompt: problem.entry["answer"] for problem in task.test}
    assert report["examples"]
    for example in report["examples"]:
        assert example["answer"] == answers[example["prompt"]]
        assert example["solved_after"] == (parse_answer(example["after"]) == example["answer"])
        # Three steps change what an untrained model writes.
        assert example["before"] != example["after"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3]
    assert len(records[0]["expert_load"]) == 5


@pytest.mark.slow
def test_stock_transformers_computed_the_same_logits(miniature) -> None:
    _, out = miniature
    reload = json.loads((out / "report.json").read_text(encoding="utf-8"))["stock_reload"]
    assert reload["passed"]
    assert reload["model_class"] == "transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3ForCausalLM"
    assert not reload["seeklet_imported"]
    assert reload["missing_tensors"] == []
    assert reload["max_logit_difference"] < 1e-4
    assert all(name.startswith("model.layers.5.") for name in reload["unexpected_tensors"])


@pytest.mark.slow
def test_plots_are_png_files_that_the_report_shows(miniature) -> None:
    _, out = miniature
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for name in ("loss", "accuracy", "expert_load"):
        assert f"(plots/{name}.png)" in markdown
        content = (out / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(PNG_SIGNATURE)
        assert len(content) > 10_000


@pytest.mark.slow
def test_out_that_cannot_be_written_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(app, ["--out", "file/demo"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "seeklet demo: --out file/demo cannot be written: Not a directory\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process group")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--out", "out", "--test-problems", "8"],
        cwd=tmp_path,
        env=os.environ | PLAIN_TERMINAL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Training"):
            break
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted: nothing was written." in output
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
