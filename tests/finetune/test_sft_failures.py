"""What goes wrong in training ends in a line that says where the run can go on from, and that checkpoint is whole."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, TrainerCallback

from seeklet.finetune import sft
from seeklet.finetune.checkpoints import last_checkpoint
from seeklet.finetune.dry_run import show_dry_run
from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.recipe import load_recipe
from tests.finetune.conftest import RunHere
from tests.finetune.sft_runs import start_process, train_in_this_process, write_recipe

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = {"adapter": {"targets": ["attention", "routed_experts"], "rank": 2}}


class At(TrainerCallback):
    """Does something when a step is done."""

    def __init__(self, step: int, do: Callable[[Any], None]):
        self.step, self.do = step, do

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Do it."""
        if state.global_step == self.step:
            self.do(model)


@torch.no_grad()
def break_weights(model: Any) -> None:
    next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def break_gradient(model: Any) -> None:
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * float("inf"))


def fill_disk(_: Any, largest_file: int = 4096) -> None:
    """Let no file grow over a size, which stands for a full disk: writing the rest fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))


def fill_disk_wholly(_: Any) -> None:
    fill_disk(None, largest_file=1)


def fill_memory(_: Any) -> None:
    torch.empty(2**50)


def train_with(recipe: Path, callback: At, said: Path) -> None:
    """Train in this process with one more callback, and write what was raised."""
    trainer_class: Any = sft.SeekletSFTTrainer

    class WithCallback(trainer_class):
        def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any):
            super().__init__(*args, callbacks=[*callbacks, callback], **kwargs)

    sft.SeekletSFTTrainer = WithCallback  # pyright: ignore[reportPrivateImportUsage]
    torch.set_num_threads(1)
    try:
        sft.train(load_recipe(recipe))
    except TrainingError as error:
        fill_disk(None, resource.RLIM_INFINITY)
        said.write_text(str(error))


def train_until_it_fails(tmp_path: Path, step: int, do: Callable[[Any], None], **sections: Any) -> str:
    """Return what the TrainingError says; in a process of its own, so that limits and changes stay there."""
    said = tmp_path / "said.txt"
    process = start_process(train_with, write_recipe(tmp_path, **sections), At(step, do), said)
    process.join()
    assert process.exitcode == 0 and said.is_file(), "no TrainingError was raised"
    text = said.read_text()
    assert "\n" not in text
    return text


def checkpoint_is_good(folder: Path, step: int) -> bool:
    """Return whether training goes on from the checkpoint of `step`: it is the last, and nothing half lies by it."""
    checkpoints = folder / "run" / "checkpoints"
    last = last_checkpoint(checkpoints)
    assert last is not None and last.name == f"checkpoint-{step}"
    assert [path.name for path in checkpoints.iterdir() if path.name.startswith(".")] == []
    return train_in_this_process(folder / "recipe.yaml", resume=True).steps == 6


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_loss_that_is_no_number(tmp_path: Path, kind: str) -> None:
    said = train_until_it_fails(tmp_path, 3, break_weights, **(ADAPTER if kind == "adapter" else {}))
    assert said.startswith("step 4: the loss is nan, so training has failed at a learning rate of 0.00")
    assert "the last good checkpoint is" in said and said.split("checkpoint is ")[1].startswith(str(tmp_path))
    assert "checkpoint-2. Begin a new run with a lower trainer.learning_rate" in said
    assert checkpoint_is_good(tmp_path, 2)


def test_a_gradient_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    """The loss of that step was still one; the weights after it are not."""
    said = train_until_it_fails(tmp_path, 3, break_gradient)
    assert said.startswith("step 4: the norm of the gradient is nan, so training has failed")
    assert "checkpoint-2." in said
    assert checkpoint_is_good(tmp_path, 2)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_full_disk(tmp_path: Path, kind: str) -> None:
    said = train_until_it_fails(tmp_path, 3, fill_disk, **(ADAPTER if kind == "adapter" else {}))
    target = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    assert said.startswith(f"{target}: saving failed: ") and "too large" in said.lower()
    assert f"the last good checkpoint is {target.with_name('checkpoint-2')}. Make room and go on with --resume" in said
    assert checkpoint_is_good(tmp_path, 2)


def test_a_full_disk_under_the_metrics(tmp_path: Path) -> None:
    said = train_until_it_fails(tmp_path, 3, fill_disk_wholly)
    last = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert (
        said == f"{tmp_path / 'run'}: File too large. the last good checkpoint is {last}; --resume goes on from there"
    )
    assert checkpoint_is_good(tmp_path, 2)


def test_a_full_memory(tmp_path: Path) -> None:
    said = train_until_it_fails(tmp_path, 3, fill_memory)
    last = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert said.startswith("this machine's memory is full; lower trainer.per_device_train_batch_size")
    assert said.endswith(f"the last good checkpoint is {last}; --resume goes on from there")
    assert checkpoint_is_good(tmp_path, 2)


def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, trainer={"max_steps": 2})
    train_in_this_process(recipe)
    metrics = tmp_path / "run" / "metrics.jsonl"
    before, started = metrics.read_bytes(), time.monotonic()
    with pytest.raises(RecipeError, match=r"holds a run with a checkpoint at step 2\. Go on with it: --resume"):
        train_in_this_process(recipe)
    assert metrics.read_bytes() == before and time.monotonic() - started < 5


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_command_goes_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, trainer={"max_steps": 2000})
    command = [sys.executable, "-m", "seeklet.finetune", "train", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "saved checkpoint-2" in line:
                break
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in errors
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert last is not None
    assert f"Stopped: the last good checkpoint is {last}; --resume goes on from there" in output
    assert [path.name for path in last.parent.iterdir() if path.name.startswith(".")] == []


def test_diverging_on_the_command_line_is_one_line_and_exit_code_2(tmp_path: Path, run_here: RunHere) -> None:
    trainer = {
        "learning_rate": 1e30,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0,
        "save_steps": 1,
    }
    recipe = write_recipe(tmp_path, trainer=trainer | {"eval_strategy": "no"})
    code, _, errors = run_here("train", recipe)
    assert code == 2
    [said] = [line for line in errors.splitlines() if line.startswith("step ")]
    assert "so training has failed at a learning rate of 1e+30" in said and "Traceback" not in errors
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert last is not None and f"the last good checkpoint is {last}" in said
    weights = AutoModelForCausalLM.from_pretrained(last).state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_adapter_is_trained_on_only_when_merged_and_drafts_need_modules(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "SmolLM2")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="is an adapter; to train on from it, merge it first: seeklet merge"):
        load_recipe(path, [f"model.path={tmp_path / 'adapter'}"])
    recipe = load_recipe(path, ["evaluation.use_mtp=true"])
    for run in (sft.train, lambda recipe: show_dry_run(recipe, Console(quiet=True))):
        with pytest.raises(RecipeError, match=r"evaluation\.use_mtp is true, but the model has no multi-token"):
            run(recipe)
