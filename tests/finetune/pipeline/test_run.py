"""A pipeline from the command line: what it leaves; killed and resumed, it is the uninterrupted one, bit by bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.pipeline import run_pipeline
from seeklet.finetune.pipeline.checks import check_stages
from seeklet.finetune.pipeline.load import load_pipeline
from seeklet.finetune.run_folder import RunFolder, locked
from tests.finetune.conftest import PLAIN_TERMINAL, RunHere
from tests.finetune.nano_checkpoints import ROOT
from tests.finetune.pipeline.killed import read_manifest, run_killed
from tests.finetune.pipeline.nano import evaluation, weights, write_pipeline
from tests.finetune.pipeline.test_changes import cut_manifest
from tests.modeling.tensors import assert_same


def test_what_it_leaves(whole: Path) -> None:
    manifest = read_manifest(whole)
    cold, reinforced = manifest["stages"]
    assert (cold["product"], reinforced["product"]) == ("cold/merged", "grpo/model")
    assert reinforced["inputs"]["model.path"] == {"stage": "cold", "sha256": cold["product_sha256"]}
    assert len(reinforced["inputs"]["prompts.train[0]"]["sha256"]) == 64
    assert reinforced["recipe"]["model"]["path"] == "{cold}" and cold["seconds"] > 0
    assert {"seeklet", "transformers", "trl"} <= cold["versions"].keys()
    names = [each["name"] for each in json.loads((whole / "stages.json").read_text())]
    assert names == ["before", "cold", "grpo"]
    report = (whole / "report.md").read_text()
    assert "All 2 stages are done." in report and "model: of cold" in report and "optimiser steps: 3" in report
    for link in ("stages.png", "cold/plots/loss.png", "grpo/plots/reward.png", "grpo/evaluation/reasoning.png"):
        assert f"]({link})" in report and (whole / link).is_file()
    assert str(whole.parent) not in report
    assert all((whole / f"{name}.yaml").is_file() for name in ("cold", "grpo"))


@pytest.mark.parametrize("moment", ["step", "between"])
def test_killed_and_gone_on_with_it_is_the_same(whole: Path, tmp_path: Path, moment: str) -> None:
    path = write_pipeline(tmp_path, evaluation=evaluation(tmp_path))
    run_killed(path, False, moment)
    done = {record["name"]: record["ended"] is not None for record in read_manifest(tmp_path / "run")["stages"]}
    assert done == ({"cold": True, "grpo": False} if moment == "step" else {"cold": True})
    checkpoints = tmp_path / "run" / "grpo" / "checkpoints"
    assert (checkpoints / "checkpoint-1").is_dir() == (moment == "step")
    run_killed(path, True, "never")
    for product in ("cold/merged", "grpo/model"):
        assert_same(weights(tmp_path / "run" / product), weights(whole / product))
    figures = [json.loads((run / "stages.json").read_text()) for run in (tmp_path / "run", whole)]
    assert [each["figures"] for each in figures[0]] == [each["figures"] for each in figures[1]]


def test_what_is_done_is_not_done_again(done: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.pipeline.run.carry_out", None)
    monkeypatch.setattr("seeklet.finetune.pipeline.run.evaluate_model", None)
    code, said, errors = run_here("run", done, "--resume")
    assert (code, errors) == (0, "") and said.count("done already") == 2


def test_from_a_stage(done: Path, whole: Path, run_here: RunHere) -> None:
    kept, stray = done.parent / "run" / "cold" / "merged", done.parent / "run" / "grpo" / "stray.txt"
    before, elsewhere = (kept / "config.json").stat().st_mtime_ns, done.parent / "run" / "notes.txt"
    stray.write_text("x")
    elsewhere.write_text("x")
    code, said, errors = run_here("run", done, "--from", "grpo")
    assert code == 0, errors
    assert said.count("done already") == 1 and (kept / "config.json").stat().st_mtime_ns == before
    assert not stray.exists() and elsewhere.exists()
    assert_same(weights(done.parent / "run" / "grpo" / "model"), weights(whole / "grpo" / "model"))


def test_from_removes_links_and_not_what_they_lead_to(done: Path) -> None:
    elsewhere = done.parent / "elsewhere"
    (done.parent / "run" / "grpo").rename(elsewhere)
    (done.parent / "run" / "grpo").symlink_to(elsewhere)
    run_pipeline(done, from_stage="grpo")
    assert (elsewhere / "model").is_dir() and not (done.parent / "run" / "grpo").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "holds a pipeline, of which 2 of 2 stages are done. Go on with it: --resume."),
        (("stages.grpo.trainer.max_steps=9", "--resume"), "grpo.trainer.max_steps: is 9, but the stage is done with 3"),
        (("stages.cold.adapter=null", "stages.cold.output.merge=false", "--resume"), "stages.cold.adapter"),
        (("--from", "gpro"), "--from gpro: no such stage; nearest: grpo"),
        (("output.dir={new}", "--resume"), "does not exist or is empty, so there is nothing to go on with"),
        (("output.dir={new}", "--from", "cold"), "there is nothing to go on with; leave out --from"),
    ],
)  # fmt: skip
def test_what_does_not_agree(done: Path, run_here: RunHere, arguments: tuple[str, ...], said: str) -> None:
    given = [argument.replace("{new}", str(done.parent / "new")) for argument in arguments]
    code, _, errors = run_here("run", done, *given)
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert not (done.parent / "new").exists()


def test_logging_may_change_when_a_stage_is_done(done: Path, run_here: RunHere) -> None:
    code, _, errors = run_here("run", done, "stages.cold.trainer.logging_steps=5", "--resume")
    assert code == 0, errors


def test_a_damaged_manifest_is_no_obstacle_to_beginning_again(done: Path, whole: Path) -> None:
    cut_manifest(done.parent / "run")
    with pytest.raises(RecipeError, match="is damaged"):
        run_pipeline(done, from_stage="grpo")
    run_pipeline(done, from_stage="cold")
    assert_same(weights(done.parent / "run" / "grpo" / "model"), weights(whole / "grpo" / "model"))


def test_other_stages_than_it_began_with(done: Path, run_here: RunHere) -> None:
    given = json.loads(done.read_text())
    given["stages"] = {"warm": given["stages"]["cold"]}
    done.write_text(json.dumps(given))
    code, _, errors = run_here("run", done, "--resume")
    assert code == 2 and "was cold and is warm now; put it back, or run from what is there now: --from warm" in errors


def test_a_stage_is_not_begun_before_those_that_it_follows(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path)
    run_killed(path, False, "between")
    given = json.loads(path.read_text())
    given["stages"]["more"] = given["stages"]["grpo"]
    path.write_text(json.dumps(given))
    with pytest.raises(RecipeError, match="--from more: grpo, before it, is not done; --resume goes on with that"):
        run_pipeline(path, from_stage="more")


def test_a_folder_with_other_files(tmp_path: Path, run_here: RunHere) -> None:
    path = write_pipeline(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    for arguments in ((), ("--resume",)):
        code, _, errors = run_here("run", path, *arguments)
        assert code == 2 and "no pipeline" in errors and len(errors.splitlines()) == 1
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_two_processes(done: Path) -> None:
    with locked(RunFolder(done.parent / "run")), pytest.raises(TrainingError, match="another process"):
        run_pipeline(done, resume=True)


def test_several_processes_are_not_how_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pipeline(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(RecipeError, match="launch: in the pipeline starts the others"):
        run_pipeline(path)


@pytest.mark.parametrize("launch", [[], ["python"]], ids=["here", "launched"])
def test_late_stages_trainer_is_checked_first(tmp_path: Path, launch: list[str], run_here: RunHere) -> None:
    path = write_pipeline(tmp_path, launch=launch)
    given = json.loads(path.read_text())
    given["stages"]["grpo"]["trainer"]["logging_nan_inf_filter"] = True
    path.write_text(json.dumps(given))
    code, said, errors = run_here("run", path)
    assert (
        code == 2 and "stages.grpo: trainer.logging_nan_inf_filter is true" in errors and len(errors.splitlines()) == 1
    )
    assert "1/2 cold" not in said and not (tmp_path / "run").exists()


def test_what_launched_processes_check_is_left_to_them(tmp_path: Path) -> None:
    """7 samples of each prompt do not divide a batch of one process."""
    problems = {}
    for launch in ([], ["python"]):
        path = write_pipeline(tmp_path / str(len(launch)), launch=launch)
        pipeline = load_pipeline(path, ["stages.grpo.trainer.num_generations=7"])
        try:
            check_stages(pipeline)
        except RecipeError as error:
            problems[len(launch)] = str(error)
    assert problems.keys() == {0} and "stages.grpo: trainer: " in problems[0]


def test_a_dry_run(tmp_path: Path, run_here: RunHere) -> None:
    path = write_pipeline(tmp_path, evaluation=evaluation(tmp_path))
    code, said, errors = run_here("run", path, "--dry-run")
    assert code == 0, errors
    assert "1/2 cold (sft)" in said and "2/2 grpo (grpo)" in said
    assert "model.path is made by cold; counted here on what that begins with" in said
    assert "reads model.path: " in said and "(of cold)" in said and "leaves a model: " in said
    assert said.count("optimizer steps of") == 2 and said.count("parameters") >= 2
    assert "nothing was run, and nothing written" in said and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stages_in_processes_of_their_own(whole: Path, tmp_path: Path) -> None:
    """Started with `launch`, killed with the pipeline in the middle, and gone on with: the same weights."""
    # Ended with SIGTERM, it leaves its worker behind.
    launch = ["accelerate", "launch", "--cpu", "--num_processes", "1"]
    path = write_pipeline(tmp_path, launch=launch, evaluation=evaluation(tmp_path))
    command = [sys.executable, "-m", "seeklet.finetune", "run", str(path)]
    environment = os.environ | PLAIN_TERMINAL | {"PYTHONPATH": str(ROOT)}
    log, checkpoint = tmp_path / "log.txt", tmp_path / "run" / "grpo" / "checkpoints" / "checkpoint-1"
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out) as process:
        while not checkpoint.is_dir() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL, log.read_text()
    wait_until_free(tmp_path / "run" / "grpo")
    assert not (tmp_path / "run" / "grpo" / "model").exists(), "its process went on without it"
    resumed = subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step" in resumed.stdout
    assert_same(weights(tmp_path / "run" / "grpo" / "model"), weights(whole / "grpo" / "model"))


def wait_until_free(folder: Path) -> None:
    """Wait until nobody holds the lock of a folder, which is soon."""
    for _ in range(200):
        try:
            with locked(RunFolder(folder)):
                return
        except TrainingError:
            time.sleep(0.05)
    raise AssertionError("the process of the stage did not end")


@pytest.mark.slow
def test_a_stage_that_fails_in_its_own_process(tmp_path: Path, run_here: RunHere) -> None:
    path = write_pipeline(tmp_path, launch=["python"])
    (tmp_path / "data.jsonl").write_text('{"messages": 1}\n')
    code, _, errors = run_here("run", path)
    assert code == 2 and "stage cold ended with exit code 2; it has said why above. --resume goes on with it" in errors
