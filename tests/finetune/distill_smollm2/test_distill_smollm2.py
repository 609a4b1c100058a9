"""The whole example, with a nano model of SmolLM2's architecture in the place of the real one."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from seeklet.finetune.distill_smollm2.__main__ import app
from seeklet.finetune.distill_smollm2.traces import PROBLEMS, TRACES
from seeklet.finetune.smollm2 import MODEL_FOLDER
from tests.finetune.nano_checkpoints import build_checkpoint

KEYS = ("bf16=false", "max_steps=100", "learning_rate=2e-2", "warmup_steps=1", "logging_steps=10", "save_steps=50")
OVERRIDES = [*(f"stages.student.trainer.{key}" for key in KEYS), "evaluation.max_new_tokens=32"]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trace(asked: str) -> dict[str, Any]:
    """Return a row of the rollout; that all end alike is what a nano model can learn."""
    said = {"role": "assistant", "reasoning_content": "1+1=2", "content": "2"}
    return {"messages": [{"role": "user", "content": asked}, said], "provenance": {"seed": 0}}


def build_demo(folder: Path) -> Path:
    write_rows(folder / TRACES, [trace(f"{n // 10}+{n % 10}-3") for n in range(60)])
    write_rows(
        folder / PROBLEMS,
        [{"prompt": f"{n // 10}+{n % 10}-3", "answer": "2", "difficulty": f"{n % 2 + 5} terms"} for n in range(60, 68)],
    )
    return folder


def run(root: Path, *arguments: str) -> Result:
    command = ["--demo", "demo", "--out", "out", "--problems", "6", *OVERRIDES, *arguments]
    with contextlib.chdir(root):
        return CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    root = tmp_path_factory.mktemp("whole")
    build_demo(root / "demo")
    build_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct", root / "out" / MODEL_FOLDER)
    return root, run(root)


@pytest.fixture
def done(whole: tuple[Path, Result], tmp_path: Path) -> Path:
    """Return a copy of a folder in which all is done."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_what_it_finds_and_says(whole: tuple[Path, Result]) -> None:
    root, result = whole
    assert result.exit_code == 0, result.output
    run_folder = root / "out" / "run"
    before, after = (
        json.loads((run_folder / name / "reasoning.json").read_text()) for name in ("before", "student/evaluation")
    )
    figures = [[each["figures"][name]["value"] for name in ("pass@1", "reasoned")] for each in (before, after)]
    assert before["problems"] == 6 and figures == [[0.0, 0.0], [100.0, 100.0]]
    assert (run_folder / "student" / "model" / "config.json").is_file()
    report = (root / "out" / "report.md").read_text()
    assert "| before | 0.0 (0.0…0.0) |  |" in report
    assert "| after | 100.0 (100.0…100.0) | +100.0 (+100.0…+100.0) |" in report
    assert "after   right  <think> 1+1=2 </think> 2" in report and "CHECK FAILED" not in report
    assert "times the 60 traces" in report and "100 optimiser steps" in report
    assert "0.0% were right before, and 100.0% after." in report
    # The teacher writes a token a character, and the tags whole.
    assert "teacher, 8 tokens: <think>|1|+|1|=|2|</think>|2" in report
    assert f"The student's tokenizer ({MODEL_FOLDER}, " in report
    assert str(root) not in report
    assert all((root / "out" / file).is_file() for file in ("run/student/plots/loss.png", "run/report.md"))


def test_what_is_done_is_not_done_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.pipeline.run.carry_out", None)
    monkeypatch.setattr("seeklet.finetune.pipeline.run.evaluate_model", None)
    report = done / "out" / "report.md"
    said = report.read_text()
    report.unlink()
    again = run(done)
    assert again.exit_code == 0 and "done already" in again.output
    assert report.read_text() == said


def test_other_traces_are_learned_anew(done: Path) -> None:
    held_out = "6+3-3"
    with (done / "demo" / TRACES).open("a") as file:
        file.write(json.dumps(trace(held_out)) + "\n")
    again = run(done, "stages.student.trainer.max_steps=2")
    assert "The student learns anew: " in again.output and "done already" not in again.output
    # Two steps teach nothing; and what is held out must not be learned from.
    assert again.exit_code == 1
    assert again.stderr.splitlines() == [
        "seeklet distill-smollm2: check failed: pass@1 did not clearly rise: +0.0 (+0.0…+0.0) points",
        f"seeklet distill-smollm2: check failed: 1 held-out problems are among the traces: {held_out!r}",
    ]
    assert (done / "out" / "report.md").read_text().count("**CHECK FAILED: ") == 2


def test_the_teacher_is_shown_where_the_demo_has_measured_it(done: Path) -> None:
    teacher = done / "demo" / "greedy" / "grpo"
    teacher.mkdir(parents=True)
    content = json.loads((done / "out" / "run" / "before" / "reasoning.json").read_text())
    # Asked without the student's system message, and more than is asked here.
    for number, each in enumerate(content["results"]):
        each["messages"] = each["messages"][-1:]
        each["figures"]["pass@1"] = float(number < 3)
    more = dict(content["results"][0], messages=[{"role": "user", "content": "1+1"}])
    (teacher / "reasoning.json").write_text(json.dumps({**content, "results": [*content["results"], more]}))
    assert run(done).exit_code == 0
    assert "The teacher gets 50.0 (" in (done / "out" / "report.md").read_text()


@pytest.mark.parametrize("name", [TRACES, PROBLEMS])
def test_the_demo_comes_first(tmp_path: Path, name: str) -> None:
    build_demo(tmp_path / "demo")
    (tmp_path / "demo" / name).write_text("")
    result = run(tmp_path)
    what = "no accepted traces" if name == TRACES else "no held-out problems"
    assert result.exit_code == 2
    said = f"--demo demo holds {what} ({name}); `make demo` comes first"
    assert result.stderr == f"seeklet distill-smollm2: {said}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.student.trainer.learning_rat=1", "unknown key; nearest: learning_rate"),
        ("evaluation.num_samples=4", "num_samples is 4 and temperature 0"),
    ],
)
def test_mistakes_end_in_a_line(done: Path, override: str, said: str) -> None:
    result = run(done, override)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1
