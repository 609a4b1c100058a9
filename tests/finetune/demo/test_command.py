"""The command itself, in real processes: the whole way in a few steps, killed and gone on with, refused, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from seeklet.finetune.demo.__main__ import app
from seeklet.finetune.demo.nano import teacher_config
from seeklet.finetune.pipeline import run_pipeline
from tests.finetune.conftest import PLAIN_TERMINAL
from tests.modeling.tensors import assert_same

COMMAND = [sys.executable, "-m", "seeklet.finetune.demo", "--quick"]
STAGES = ["cold_start", "grpo", "rollout", "student_on_answers", "student_on_traces", "on_policy"]
Run = tuple[subprocess.CompletedProcess[str], Path]


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | PLAIN_TERMINAL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said; {process.stderr and process.stderr.read()}")


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=os.environ | PLAIN_TERMINAL, capture_output=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    return run(folder, "--out", "out"), folder / "out"


def read_state(out: Path) -> dict[str, Any]:
    return json.loads((out / "demo.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_ends_well(whole: Run) -> None:
    process, out = whole
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""
    for index, (name, kind) in enumerate(zip(STAGES, ("sft", "grpo", "rollout", "sft", "sft", "distill"), strict=True)):
        assert f" {index + 1}/6 {name} ({kind}) " in process.stdout
    for line in ("report: out/demo.md", "all stages: out/report.md", "teacher: out/grpo/model"):
        assert line in process.stdout
    written = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert written == {
        *("data", "pipeline.yaml", "manifest.json", "report.md", "stages.json", "stages.md", "stages.png"),
        *("before", "greedy", "demo.json", "demo.md"),
        *STAGES,
        *(f"{name}.yaml" for name in STAGES),
    }


@pytest.mark.slow
def test_reports_have_every_figure(whole: Run) -> None:
    _, out = whole
    state = read_state(out)
    assert state["finished"] and state["settings"] == {"seed": 0, "threads": 1, "quick": True}
    found = state["findings"]
    assert [stage["name"] for stage in found["stages"]] == STAGES == state["stages"]
    for stage in found["stages"]:
        if stage["kind"] == "rollout":
            assert stage["greedy"] is stage["sampled"] is None
            continue
        assert {"pass@1", "reasoned", "tokens"} <= stage["greedy"].keys() and "pass@4" not in stage["greedy"]
        assert {"pass@1", "pass@4"} <= stage["sampled"].keys() and stage["seconds"] > 0
        greedy = json.loads((out / "greedy" / stage["name"] / "reasoning.json").read_text())
        assert (greedy["problems"], greedy["samples"], greedy["settings"]["temperature"]) == (8, 1, 0.0)
        assert greedy["figures"]["tokens"] == stage["greedy"]["tokens"]
    assert found["parameters"]["student_share"] <= 0.55 and not found["resumed"]
    assert [speed["rows"] for speed in found["mtp_drafts"]] == [8]
    text = (out / "demo.md").read_text(encoding="utf-8")
    for link in ("stages.png", "grpo/plots/reward.png", "grpo/plots/length.png", "report.md", "greedy/stages.md"):
        assert f"]({link})" in text and (out / link).stat().st_size > 0
    assert str(out.parent) not in text


@pytest.mark.slow
def test_stock_transformers_computed_the_same_logits(whole: Run) -> None:
    reload = read_state(whole[1])["findings"]["stock_reload"]
    assert reload["passed"] and not reload["seeklet_imported"] and reload["missing_tensors"] == []
    assert reload["model_class"] == "transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3ForCausalLM"
    assert reload["max_logit_difference"] < 1e-4 and reload["unexpected_tensors"]
    module = f"model.layers.{teacher_config().num_hidden_layers}."
    assert all(name.startswith(module) for name in reload["unexpected_tensors"])


@pytest.mark.slow
def test_killed_it_goes_on_and_leaves_the_same_models(whole: Run, tmp_path: Path) -> None:
    process = start(tmp_path, "--out", "out")
    wait_for(process, "2/6 grpo (grpo)")
    wait_for(process, "saved checkpoint-1")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not read_state(tmp_path / "out")["finished"]
    # A file of the user's does not keep it from going on.
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = run(tmp_path, "--out", "out")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("An interrupted demo goes on.\n") and again.stdout.count("done already") == 1
    for name in ("grpo", "on_policy"):
        file = Path(name) / "model" / "model.safetensors"
        assert_same(load_file(tmp_path / "out" / file), load_file(whole[1] / file))
    assert read_state(tmp_path / "out")["findings"]["resumed"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_its_pipeline_is_one_that_seeklet_run_takes(whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.pipeline.run.carry_out", None)
    monkeypatch.setattr("seeklet.finetune.pipeline.run.evaluate_model", None)
    result = run_pipeline(whole[1] / "pipeline.yaml", resume=True)
    assert [stage.name for stage in result.stages if stage.skipped] == STAGES


@pytest.mark.slow
@pytest.mark.parametrize("out", ["file/demo", "thesis"])
def test_a_folder_that_is_something_elses_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("important")
    refused = CliRunner().invoke(app, ["--quick", "--out", out])
    said = "cannot be used: Not a directory" if out == "file/demo" else "holds files and no demo; name a folder that is"
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"seeklet demo: --out {out} {said}") and refused.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process group")
def test_ctrl_c_says_how_it_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--out", "out")
    wait_for(process, "1/6 cold_start")
    wait_for(process, "step 1 of 3")
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert output.endswith("Interrupted: the same command goes on where it was.\n")
    assert "Traceback" not in errors + output
