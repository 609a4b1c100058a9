"""Engines: what excludes what is said in a line, and a process that is killed ends the run, which can go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch import distributed as dist

from seeklet.finetune.checkpoints import last_checkpoint, step_of
from seeklet.finetune.engines import check_engine, find_engine_mistakes, is_lost_process
from seeklet.finetune.errors import RecipeError
from tests.finetune.sft_runs import run, write_recipe

FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("environment", "quantization", "wrong"),
    [
        ({}, "nf4", []),
        (FSDP, None, []),
        (FSDP, "nf4", ["model.quantization is nf4, and FSDP does not share out quantised weights"]),
        (DEEPSPEED, None, ["trainer accelerate was started with DeepSpeed, which is not installed; pip install"]),
        (FSDP | DEEPSPEED, None, ["trainer accelerate was started with FSDP and with DeepSpeed; allowed: one", ""]),
    ],
)
def test_what_cannot_be_is_said(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], quantization: str | None, wrong: list[str]
) -> None:
    monkeypatch.setattr("seeklet.finetune.engines.find_spec", lambda name: None)
    for name in FSDP | DEEPSPEED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = [f"{key} {what}" for key, what in find_engine_mistakes(quantization)]
    assert len(found) == len(wrong) and all(one.startswith(start) for one, start in zip(found, wrong, strict=True))


def test_deepspeed_goes_on_from_its_own_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would go on with a fresh optimizer, and say nothing."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (theirs / "global_step10").mkdir(parents=True)
    ours.mkdir()
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    check_engine(ours, 2, 4)
    with pytest.raises(
        RecipeError, match="theirs: saved under DeepSpeed, which alone reads it; start as before, or a "
    ):
        check_engine(theirs, 2, 2)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_engine(theirs, 2, 2)
    with pytest.raises(RecipeError, match="ours: not saved under DeepSpeed, which reads no other"):
        check_engine(ours, 2, 2)
    with pytest.raises(RecipeError, match="saved under DeepSpeed by 2 processes, and there are 4, which"):
        check_engine(theirs, 2, 4)


def test_a_process_that_is_gone_is_told_from_other_errors() -> None:
    assert is_lost_process(RuntimeError("[gloo/pair.cc:537] Read error: Connection reset by peer"))
    assert is_lost_process(dist.DistNetworkError("connection"))
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_another_number_goes_on(tmp_path: Path) -> None:
    trainer = {"max_steps": 40, "save_steps": 2, "eval_strategy": "no", "gradient_accumulation_steps": 1}
    recipe = write_recipe(tmp_path, trainer=trainer)
    checkpoints = tmp_path / "run" / "checkpoints"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "seeklet.finetune"]
    launcher = subprocess.Popen(
        [sys.executable, *launch, "train", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while last_checkpoint(checkpoints) is None:
        assert time.monotonic() < end and launcher.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    (second,) = [process for process in workers if process.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGKILL)
    said, _ = launcher.communicate(timeout=30)
    assert launcher.returncode != 0
    assert not any(process.is_running() for process in workers)
    assert "seeklet/finetune" not in re.sub(r".*torch/.*", "", said), "a traceback of ours"
    checkpoint = last_checkpoint(checkpoints)
    assert checkpoint is not None and 2 <= step_of(checkpoint) < 40
    # One process goes on, with twice as many batches a step.
    run(write_recipe(tmp_path, trainer=trainer | {"gradient_accumulation_steps": 2}), resume=True)
    last = last_checkpoint(checkpoints)
    assert last is not None and step_of(last) == 40
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Of one process a step is as much of an epoch as it was of two.
    epochs = [entry["epoch"] for entry in entries if "loss" in entry]
    assert epochs == pytest.approx([step * epochs[0] for step in range(1, 41)])
