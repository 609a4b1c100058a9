"""Rejection sampling and evaluation as stages: what they hand on, and what a rollout that keeps nothing does."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.pipeline import run_pipeline
from seeklet.finetune.rollout import attempt_file
from tests.finetune.pipeline.nano import TRAINER, evaluation, weights, write_pipeline
from tests.finetune.sft_runs import start_process
from tests.modeling.tensors import assert_same

# What a model that has learnt nothing says is kept as it is.
LENIENT = {"threshold": -1, "requires_format": False, "requires_reasoning": False, "max_foreign_share": 1.0}


def write_rollout(folder: Path, **sampling: Any) -> Path:
    """Write a pipeline of a rollout, training on what it kept, and an evaluation of that."""
    data = {"train": ["{rollout}", str(folder / "data.jsonl")], "validation": 0.0, "chat_template": "moonlight"}
    asked = evaluation(folder)
    path = write_pipeline(
        folder,
        stages={
            "rollout": {
                "stage": "rollout",
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "prompts": {"train": str(folder / "problems.jsonl"), "chat_template": "moonlight"},
                "rewards": [{"kind": "exact"}],
                "sampling": {**LENIENT, "num_samples": 4, "max_new_tokens": 16, "batch_size": 4, **sampling},
            },
            "sft": {
                "stage": "sft",
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "data": {**data, "max_tokens": 256, "on_duplicate": "drop", "scan": False},
                "trainer": {**TRAINER, "per_device_train_batch_size": 2},
            },
            "measured": {
                "stage": "reasoning",
                "model": {"path": "{sft}", "dtype": "float32"},
                "prompts": asked["prompts"],
                "rewards": asked["rewards"],
                "evaluation": {"num_samples": 2, "max_new_tokens": 4},
            },
        },
    )
    generation = folder / "model" / "generation_config.json"
    # Every fourth token ends a sample.
    ends = list(range(0, json.loads((folder / "model" / "config.json").read_text())["vocab_size"], 4))
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"eos_token_id": ends}))
    return path


def run_until(path: Path, number: int) -> None:
    """Run in this process, which kills itself when so many batches of attempts are on disk."""
    torch.set_num_threads(1)
    add = attempt_file.AttemptFile.add
    seen = 0

    def add_and_die(self: Any, prompts: Any) -> None:
        nonlocal seen
        add(self, prompts)
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    attempt_file.AttemptFile.add = add_and_die
    run_pipeline(path)


@pytest.mark.slow
def test_killed_while_sampling_and_gone_on_with_it_is_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_pipeline(write_rollout(whole))
    assert [stage.product.name for stage in result.stages] == ["dataset.jsonl", "model", "reasoning.json"]
    path = write_rollout(killed)
    process = start_process(run_until, path, 1)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "run" / "rollout" / "dataset.jsonl").exists()
    run_pipeline(path, resume=True)
    datasets = [(folder / "run" / "rollout" / "dataset.jsonl").read_text() for folder in (whole, killed)]
    assert datasets[0] == datasets[1] and datasets[0].count("\n") > 1
    assert_same(weights(killed / "run" / "sft" / "model"), weights(whole / "run" / "sft" / "model"))
    report = result.report.read_text()
    assert "| rows kept | " in report and "A row that was kept:" in report and "](rollout/report.png)" in report
    assert "](measured/reasoning.png)" in report and "| measured | reasoning | of sft | – | " in report
    assert report.count("first attempt (") == 2 and "data.train\\[0\\]: what rollout left" in report


def test_a_rollout_that_keeps_nothing_and_then_other_filters(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, requires_format=True)
    with pytest.raises(TrainingError, match=r"stage rollout kept no row, .*report\.md says why"):
        run_pipeline(path)
    with pytest.raises(RecipeError, match=r"stages\.rollout\.sampling\.num_samples: is 2, but the stage began with 4"):
        run_pipeline(path, ["stages.rollout.sampling.num_samples=2"], resume=True)
    attempts = tmp_path / "run" / "rollout" / "attempts-0.jsonl"
    before = attempts.read_bytes()
    result = run_pipeline(path, ["stages.rollout.sampling.requires_format=false"], resume=True)
    assert attempts.read_bytes() == before and not any(stage.skipped for stage in result.stages)


def test_what_is_wrong_with_the_last_stage_is_found_before_the_first_runs(tmp_path: Path) -> None:
    path = write_rollout(tmp_path)
    overrides = [
        "stages.measured.rewards=[{kind: exakt}]",
        "stages.sft.trainer.optim_args=x",
        "stages.sft.trainer.optim=sgdd",
    ]
    with pytest.raises(RecipeError, match=r"exakt|sgdd"):
        run_pipeline(path, overrides)
    with pytest.raises(RecipeError, match=r'^stages\.measured: .*there is no reward "exakt"'):
        run_pipeline(path, overrides[:1])
    assert not (tmp_path / "run").exists()


def test_a_late_stage_that_wants_vllm_is_told_before_the_first_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the stage is started in processes of its own, whose batches nobody can check beforehand."""
    monkeypatch.setattr("seeklet.finetune.trainer_settings.find_spec", lambda name: None)
    path = write_rollout(tmp_path)
    given = yaml.safe_load(path.read_text())
    prompts = {key: given["stages"]["rollout"][key] for key in ("prompts", "rewards")}
    given["stages"]["late"] = {
        "stage": "grpo",
        "launch": ["python"],
        "model": {"path": "{sft}"},
        **prompts,
        "trainer": {"use_vllm": True},
    }
    # JSON is YAML, and has no anchors.
    path.write_text(json.dumps(given))
    with pytest.raises(RecipeError, match=r"^stages\.late: trainer\.use_vllm is true, but vllm is not installed"):
        run_pipeline(path)
    assert not (tmp_path / "run").exists()
