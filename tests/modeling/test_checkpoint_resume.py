"""`load_state_dict` with the published names: alone, shard by shard, and as Trainer does, killed and resumed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import load_sharded_checkpoint

from seeklet.modeling import SeekletForCausalLM
from tests.modeling import train_in_process
from tests.modeling.nano import build_ours, draw_tokens
from tests.modeling.tensors import assert_same, load, read
from tests.modeling.train_in_process import INTERRUPT_STEP, NUM_STEPS, READY, SAVE_STEPS

ROOT = Path(__file__).resolve().parents[2]

GATE = "model.layers.2.mlp.experts.5.gate_proj.weight"
DOWN = "model.layers.3.mlp.experts.0.down_proj.weight"


def build(seed: int) -> SeekletForCausalLM:
    return build_ours(num_nextn_predict_layers=1, seed=seed)


@pytest.fixture
def published(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Return what is on disk of the model with seed 0: one tensor an expert, and the MTP module's copies."""
    build(0).save_pretrained(tmp_path / "published")
    return read(tmp_path / "published")


def test_published_names_load_strictly(published: dict[str, torch.Tensor]) -> None:
    model = build(1)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    result = model.load_state_dict(published)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same(model.state_dict(), build(0).state_dict())
    # In place: an optimizer still holds the same parameters.
    assert before == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_in_memory_load_as_ever() -> None:
    model = build(1)
    result = model.load_state_dict(build(0).state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same(model.state_dict(), build(0).state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_a_missing_expert_is_named(published: dict[str, torch.Tensor], assign: bool) -> None:
    del published[GATE], published[DOWN]
    with pytest.raises(RuntimeError) as error:
        build(1).load_state_dict(published, assign=assign)
    assert GATE in str(error.value) and DOWN in str(error.value)
    assert "experts.4" not in str(error.value)


def test_an_expert_of_another_shape_is_named(published: dict[str, torch.Tensor]) -> None:
    published[GATE] = published[GATE].t().contiguous()
    message = rf"size mismatch for {GATE}: copying a param with shape \(40, 24\) .* current model is \(24, 40\)"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            build(1).load_state_dict(published, strict=strict)


def test_an_expert_too_many_is_named(published: dict[str, torch.Tensor]) -> None:
    published["model.layers.1.mlp.experts.8.up_proj.weight"] = torch.zeros(24, 40)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*experts\.8\.up_proj\.weight"):
        build(1).load_state_dict(published)


def test_some_of_the_experts_change_only_these(published: dict[str, torch.Tensor]) -> None:
    model, start = build(1), build(1).state_dict()
    result = model.load_state_dict({GATE: published[GATE]}, strict=False)
    assert GATE not in result.missing_keys and result.unexpected_keys == []
    key = "model.layers.2.mlp.experts.gate_up_proj"
    start[key][5, :24] = published[GATE]
    assert_same(model.state_dict(), start)


def test_assign_makes_new_tensors_of_the_published_ones(published: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        model = SeekletForCausalLM(build(0).config)
    model.load_state_dict(published, assign=True)
    assert_same(model.state_dict(), build(0).state_dict())


@pytest.mark.parametrize("max_shard_size", ["150KB", "5GB"])
def test_shards_load_one_by_one(tmp_path: Path, max_shard_size: str) -> None:
    build(0).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    model = build(1)
    if max_shard_size == "5GB":
        model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    else:
        load_sharded_checkpoint(model, str(tmp_path), strict=False)
    assert_same(model.state_dict(), build(0).state_dict())


class Rows(Dataset):
    """The same 16 rows in every process."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = draw_tokens(1, 12, seed=index)[0]
        return {"input_ids": ids, "labels": ids}


class UpdateBias(TrainerCallback):
    """Moves the router bias at each step, so that it has to be restored, too."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.update_router_bias()


def train(folder: Path, **arguments: Any) -> Any:
    """Return the Trainer after 4 steps."""
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=3,
        **arguments,
    )
    trainer = Trainer(build(0), settings, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[UpdateBias()])
    trainer.train()
    return trainer


def start_training(folder: Path, mode: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", train_in_process.__name__, str(folder), mode]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def losses_of(folder: Path, mode: str) -> list[str]:
    return (folder / f"losses-{mode}.txt").read_text().split()


def flatten(state: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their path."""
    if not isinstance(state, dict | list):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {path: leaf for key, value in items for path, leaf in flatten(value, f"{name}/{key}").items()}


def optimizer_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and everything else in optimizer.pt and scheduler.pt."""
    files = {name: torch.load(folder / name, weights_only=True) for name in ("optimizer.pt", "scheduler.pt")}
    leaves = flatten(files)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    return tensors, {name: leaf for name, leaf in leaves.items() if name not in tensors}


@pytest.mark.slow
def test_a_training_that_is_killed_and_resumed_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with start_training(whole, "whole") as uninterrupted, start_training(halves, "interrupted") as killed:
        assert killed.stdout is not None
        assert f"{READY}\n" in killed.stdout, "the training ended before it was killed"
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        uninterrupted.communicate()
        assert uninterrupted.returncode == 0
    assert sorted(folder.name for folder in halves.glob("checkpoint-*")) == [f"checkpoint-{SAVE_STEPS}"]
    with start_training(halves, "resumed") as resumed:
        resumed.communicate()
        assert resumed.returncode == 0

    losses = losses_of(whole, "whole")
    assert len(set(losses)) == NUM_STEPS
    assert losses_of(halves, "interrupted") == losses[:INTERRUPT_STEP]
    assert losses_of(halves, "resumed") == losses[SAVE_STEPS:]

    first, last = f"checkpoint-{SAVE_STEPS}", f"checkpoint-{NUM_STEPS}"
    start, end = read(halves / first), read(halves / last)
    assert_same(end, read(whole / last))
    # All of them had to be restored: the steps since moved an expert, the MTP module and the router bias.
    for name in (DOWN, "model.layers.3.eh_proj.weight", "model.layers.1.mlp.gate.e_score_correction_bias"):
        assert not torch.equal(start[name], end[name]), name

    tensors, others = optimizer_state(halves / last)
    expected_tensors, expected_others = optimizer_state(whole / last)
    assert any(name.endswith("/exp_avg_sq") for name in tensors)
    assert_same(tensors, expected_tensors)
    assert others == expected_others


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer = train(tmp_path, **best)
    folder = Path(trainer.state.best_model_checkpoint)
    assert_same(trainer.model.state_dict(), load(folder).state_dict())
