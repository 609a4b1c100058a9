"""`load_state_dict` with the published names: alone, shard by shard, and as Trainer calls it when it resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import load_sharded_checkpoint

from seeklet.modeling import SeekletForCausalLM
from tests.modeling.nano import build_ours, draw_tokens
from tests.modeling.tensors import assert_same, load, read

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


def train(folder: Path, steps: int, resume: bool, **arguments: Any) -> tuple[Any, list[float]]:
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
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
    model = build(7 if resume else 0)
    trainer = Trainer(model, settings, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[UpdateBias()])
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, losses = train(tmp_path / "whole", 4, resume=False)
    train(tmp_path / "halves", 2, resume=False)
    resumed, resumed_losses = train(tmp_path / "halves", 4, resume=True)
    assert resumed_losses == losses
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    # What the checkpoint holds is the published format, and what it was at that step.
    saved = load(tmp_path / "halves" / "checkpoint-4")
    assert_same(saved.state_dict(), whole.model.state_dict())
    assert "model.layers.3.mlp.experts.7.up_proj.weight" in read(tmp_path / "halves" / "checkpoint-4")


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer, _ = train(tmp_path, 4, resume=False, **best)
    folder = Path(trainer.state.best_model_checkpoint)
    assert_same(trainer.model.state_dict(), load(folder).state_dict())
