"""A rollout of a real model in a process of its own, killed as often as it gets anywhere."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seeklet.finetune.errors import TrainingError
from seeklet.finetune.rollout.run import fingerprint_weights
from tests.finetune.rollout.killed import NUM_PROMPTS, SIZES, run
from tests.modeling.nano import build_ours

ROOT = Path(__file__).parents[3]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once_it_has(folder: Path, number: int) -> None:
    path = folder / "attempts-0.jsonl"
    command = [sys.executable, "-m", "tests.finetune.rollout.killed", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while lines(path) < number and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None, "it was done before it could be killed"
        with pytest.raises(TrainingError, match="another process samples into"):
            run(folder)
        process.kill()


def test_killed_and_gone_on_with_it_is_the_same(tmp_path: Path) -> None:
    once, killed = tmp_path / "once", tmp_path / "killed"
    report = run(once)
    assert 0 < report.num_kept < report.num_attempts == 4 * NUM_PROMPTS
    kill_once_it_has(killed, 3)
    assert 2 < lines(killed / "attempts-0.jsonl") < NUM_PROMPTS and not (killed / "dataset.jsonl").exists()
    run(killed)
    for name in ("attempts-0.jsonl", "dataset.jsonl", "report.json"):
        assert (killed / name).read_bytes() == (once / name).read_bytes()
        assert str(ROOT) not in (once / name).read_text()


def test_drafted_rollouts_are_kept_apart_from_others(tmp_path: Path) -> None:
    assert run(tmp_path / "drafted", use_mtp=True).num_attempts == 4 * NUM_PROMPTS


def test_the_fingerprint_of_weights() -> None:
    model, same, other = (build_ours(**SIZES, seed=seed) for seed in (0, 0, 1))
    before = fingerprint_weights(model)
    assert before == fingerprint_weights(same) != fingerprint_weights(other)
    with torch.no_grad():
        model.lm_head.weight += 1e-3
    assert fingerprint_weights(model) != before and len(before) == 16
