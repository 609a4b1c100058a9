"""The demo from first to last: its stages, one after the other, each timed."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from rich.console import Console

import seeklet
from seeklet.modeling import SeekletForCausalLM

from .drafts import compare_drafts
from .evaluate import complete, score
from .findings import DemoSettings, Example, Findings, StageTime
from .nano import count_parameters, moe_layer_names, nano_config
from .plots import draw_plots
from .progress import counting_progress, training_progress
from .report import format_accuracy
from .stock_reload import reload_in_stock
from .task import ChainSums
from .tokenizer import build_tokenizer
from .train import History, TrainSettings, train

# Conversations whose logits are compared with stock's: about 1,600 positions.
RELOAD_PROBLEMS = 32


class Stages:
    """Announces each stage on the terminal and keeps its time."""

    def __init__(self, console: Console) -> None:
        self.times: list[StageTime] = []
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._console.print(f"[bold]{name}[/bold]")
        wall, cpu = time.perf_counter(), _cpu_seconds()
        yield
        self.times.append(StageTime(name, time.perf_counter() - wall, _cpu_seconds() - cpu))


def run_demo(settings: DemoSettings, folder: Path, console: Console) -> Findings:
    """Return what the demo found; writes `model`, `plots` and `metrics.jsonl` into `folder`."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    stages = Stages(console)
    with stages.stage("Problems, tokenizer and model"):
        tokenizer = build_tokenizer()
        task = ChainSums(settings.seed, settings.test_problems, settings.validation_problems)
        model = SeekletForCausalLM(nano_config())
        parameters = count_parameters(model)
        console.print(f"  {parameters['total']:,} parameters, {parameters['active_per_token']:,} active per token")
    with stages.stage(f"Accuracy before, on {len(task.test)} held-out problems"):
        before = score(task, task.test, before_texts := complete(model, tokenizer, task.test))
        console.print(f"  {format_accuracy(before)}")
    training = TrainSettings(steps=settings.steps, seed=settings.seed)
    with stages.stage("Training"), training_progress(console, training.steps) as (on_step, on_validation):
        history = train(model, tokenizer, task, training, on_step, on_validation)
    with stages.stage("Accuracy after, on the same problems"):
        after = score(task, task.test, after_texts := complete(model, tokenizer, task.test))
        console.print(f"  {format_accuracy(after)}")
    with (
        stages.stage("Generation with and without MTP drafts"),
        counting_progress(console, "repeats", settings.draft_repeats) as on_repeat,
    ):
        prompts = task.test[: settings.draft_prompts]
        drafts = compare_drafts(model, tokenizer, prompts, settings.draft_repeats, on_repeat)
    with stages.stage("Saving, and reloading in stock transformers in a fresh process"):
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        reload = reload_in_stock(model, tokenizer, folder / "model", task.test[:RELOAD_PROBLEMS])
    with stages.stage("Figures"):
        _write_metrics(history, folder / "metrics.jsonl")
        plots = draw_plots(history, moe_layer_names(model), training.stop_accuracy, folder / "plots")
    return Findings(
        settings=settings,
        training=training,
        machine=_describe_machine(),
        versions=_versions(),
        parameters=parameters,
        before=before,
        after=after,
        history=history,
        layer_names=moe_layer_names(model),
        drafts=drafts,
        reload=reload,
        examples=choose_examples(task, before_texts, after_texts),
        plots=plots,
        stages=stages.times,
    )


def _describe_machine() -> dict[str, str | int]:
    return {"cpu": platform.machine(), "cores": _usable_cores(), "system": platform.system()}


def choose_examples(task: ChainSums, before: list[str], after: list[str]) -> list[Example]:
    """Return up to two solved problems and up to one that is still wrong: the first of each kind in the test set."""
    examples = [
        Example(problem.prompt, problem.entry["answer"], untrained, trained, task.is_correct(trained, problem))
        for problem, untrained, trained in zip(task.test, before, after, strict=True)
    ]
    solved = [example for example in examples if example.solved_after]
    wrong = [example for example in examples if not example.solved_after]
    return solved[:2] + wrong[:1]


def _write_metrics(history: History, file: Path) -> None:
    """Write one JSON object per line: every step's record, then every validation's."""
    records = [asdict(record) for record in (*history.steps, *history.validations)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _versions() -> dict[str, str]:
    return {
        "seeklet": seeklet.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_seconds() -> float:
    # Children: the process that runs stock transformers.
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
