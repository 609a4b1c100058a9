"""What the metrics file holds, also after a kill in the middle of a line and when a run goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from seeklet.finetune.metrics import MetricsFile, keep_until, read_metrics


def log(path: Path, step: int, is_main: bool = True, **logs: Any) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=is_main)
    arguments = TrainingArguments(output_dir=str(path.parent), use_cpu=True)
    MetricsFile(path).on_log(arguments, state, TrainerControl(), logs)


def test_each_entry_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, 1, loss=2.5, learning_rate=1e-4)
    assert path.read_text() == '{"step": 1, "loss": 2.5, "learning_rate": 0.0001}\n'
    log(path, 2, loss=float("nan"), grad_norm=torch.tensor(0.5), eval_loss=float("inf"))
    assert read_metrics(path)[1] == {"step": 2, "loss": None, "grad_norm": 0.5, "eval_loss": None}
    # Strict JSON: no NaN.
    assert "NaN" not in path.read_text()


def test_other_processes_and_empty_logs_write_nothing(tmp_path: Path) -> None:
    log(tmp_path / "metrics.jsonl", 1, is_main=False, loss=1.0)
    log(tmp_path / "metrics.jsonl", 1)
    assert list(tmp_path.iterdir()) == [] and read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, 1, loss=2.5)
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}]
    keep_until(path, 1)
    log(path, 2, loss=2.0)
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [2.5, 2.0]


@pytest.mark.parametrize(("step", "left"), [(0, []), (4, [1, 2, 4]), (5, [1, 2, 4, 5]), (99, [1, 2, 4, 5, 7])])
def test_a_run_that_goes_on_logs_nothing_twice(tmp_path: Path, step: int, left: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    for each in (1, 2, 4, 5, 7):
        log(path, each, loss=1.0)
    log(path, 7, train_runtime=3.0)
    keep_until(path, step)
    assert [entry["step"] for entry in read_metrics(path)] == left
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
