"""Distillation from recipes in two processes (gloo), as accelerate launch starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finetune.conftest import PLAIN_TERMINAL
from tests.finetune.distill.stage_runs import write_recipe


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distill", "distill-topk"])
def test_one_reads_and_writes_and_both_train(stage: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stage, trainer={"max_steps": 2, "gradient_accumulation_steps": 1})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "seeklet.finetune", "train", str(path)],
        env=os.environ | PLAIN_TERMINAL,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done: 2 steps, divergence from the teacher") == 1
    if stage == "distill-topk":
        assert done.stdout.count("teacher reads ") == 1
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2] and all(entry["divergence"] > 0 for entry in steps)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
