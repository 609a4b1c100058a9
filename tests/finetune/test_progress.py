"""What is shown of a run: lines where there is no terminal, a bar where there is one, nothing in other processes."""

import io
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from seeklet.finetune import progress
from seeklet.finetune.progress import describe, training_progress
from seeklet.finetune.throughput import Throughput, memory_gib

LOGS = {"loss": 2.31, "learning_rate": 1e-4, "tokens_per_s": 3210.4, "memory_gib": 1.23}


class Run:
    """Stands for a Trainer: passes its events on."""

    def __init__(self, tmp_path: Path, callback: Any, is_main: bool = True, first_step: int = 0):
        self.state = TrainerState(max_steps=1000, is_world_process_zero=is_main, global_step=first_step)
        self.arguments, self.callback = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), callback
        self.tell("on_train_begin")

    def tell(self, event: str, step: int | None = None, **what: Any) -> None:
        self.state.global_step = self.state.global_step if step is None else step
        getattr(self.callback, event)(self.arguments, self.state, TrainerControl(), **what)


def show(tmp_path: Path, terminal: bool, is_main: bool = True, width: int = 80) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, legacy_windows=False)
    with training_progress(console) as callback:
        run = Run(tmp_path, callback, is_main)
        run.tell("on_step_end", 10)
        run.tell("on_log", 10, logs=dict(LOGS))
        run.tell("on_log", 11, logs=LOGS | {"loss": 1.5})
        for _ in range(3):
            run.tell("on_prediction_step", eval_dataloader=[1, 2, 3])
        run.tell("on_log", 20, logs={"eval_loss": 2.1234, "eval_runtime": 61.4})
        run.tell("on_evaluate")
        run.tell("on_save", 20)
        run.tell("on_step_end", 1000)
        run.tell("on_log", 1000, logs=LOGS | {"loss": 0.5})
        run.tell("on_log", 1000, logs={"train_runtime": 3.0})
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_lines_without_a_terminal(tmp_path: Path) -> None:
    first, validation, saved, last = show(tmp_path, terminal=False).splitlines()
    figures = "lr 1.0e-04 · 3,210 tokens/s · 1.2 GiB"
    assert re.fullmatch(rf"  step    10 of 1,000   loss 2\.3100 · {re.escape(figures)} · \d+:\d\d:\d\d left", first)
    # The entry of step 11 came too soon after that of step 10.
    assert validation == "  step    20 of 1,000   validation loss 2.1234 (0:01:01)"
    assert saved == "  step    20 of 1,000   saved checkpoint-20"
    assert last == f"  step 1,000 of 1,000   loss 0.5000 · {figures}"


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    output = show(tmp_path, terminal=True)
    assert "validation loss 2.1234" in output and "saved checkpoint-20" in output
    # Nothing is cut off on a terminal of 80 columns.
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert re.search(r"training ━+ 1000/1000 \d:\d\d:\d\d left \d:\d\d:\d\d", plain) and "…" not in plain
    assert "\n  loss 0.5000 · lr 1.0e-04 · 3,210 tokens/s · 1.2 GiB" in output
    assert "\x1b[2K" in output, "the bar was not taken away"


@pytest.mark.parametrize("terminal", [False, True])
def test_silence_in_other_processes(tmp_path: Path, terminal: bool) -> None:
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\s", "", show(tmp_path, terminal, is_main=False))
    assert shown == ""


def test_time_left_counts_from_where_the_run_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with training_progress(Console(file=io.StringIO())) as callback:
        run = Run(tmp_path, callback, first_step=900)
        now = 120.0
        run.state.global_step = 910
        assert callback._time_left(run.state) == timedelta(seconds=180)


def test_describe_shows_the_loss_of_the_next_token() -> None:
    logs = LOGS | {"lm_loss": 2.0, "mtp_loss": 3.0}
    assert describe(logs) == "loss 2.0000 · MTP 3.0000 · lr 1.0e-04 · 3,210 tokens/s · 1.2 GiB"
    assert describe({"loss": 1.0}) == "loss 1.0000"


def test_throughput_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("seeklet.finetune.throughput.time.perf_counter", lambda: now)
    throughput = Throughput(torch.device("cpu"))
    throughput.add(torch.tensor(30))
    throughput.add(12)
    now = 14.0
    with throughput.paused():
        now = 114.0
    now = 115.0
    assert throughput.measure() == (torch.tensor(42), 5.0)
    now = 117.0
    assert throughput.measure() == (torch.tensor(0), 2.0)


def test_memory_of_the_process() -> None:
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(2**26)
    assert 0.2 <= memory_gib(torch.device("cpu")) - before <= 0.3
    del held
