"""The callback, in transformers' own Trainer: once per optimiser step, over all its micro-batches, into the logs."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from seeklet.finetune.balance import (
    NotASeekletModelError,
    RouterBiasCallback,
    max_over_mean,
    moe_layer_indices,
    seeklet_model,
)
from seeklet.modeling import SeekletError
from tests.modeling.nano import build_ours, draw_tokens

STEPS, ROWS_PER_STEP, LENGTH, TOP_K = 3, 4, 9, 3


def biases(model: torch.nn.Module) -> list[torch.Tensor]:
    return [b.clone() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]


def record_loads(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Return a list that every update appends its load to: a list of counts a layer."""
    recorded: list[list[list[int]]] = []
    update = model.update_router_bias

    def record(**kwargs: Any) -> list[torch.Tensor]:
        loads = update(**kwargs)
        recorded.append([load.tolist() for load in loads])
        return loads

    monkeypatch.setattr(model, "update_router_bias", record)
    return recorded


def train(model: Any, folder: Path, callback: RouterBiasCallback | None, **settings: Any) -> Trainer:
    """Train STEPS optimiser steps, ROWS_PER_STEP rows each, in the same order whatever the micro-batch."""
    tokens = draw_tokens(STEPS * ROWS_PER_STEP, LENGTH)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS_PER_STEP,
            "report_to": "none",
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **settings,
        }
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else None)  # pyright: ignore[reportArgumentType]
    trainer.train()
    return trainer


ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(autouse=True)
def one_thread(seeded: None) -> Any:
    """At nano sizes a second thread gains nothing, and on shared cores it costs twenty times the time."""
    torch.set_num_threads(1)


def test_updates_once_a_step_by_the_load_of_both_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_ours(bias_update_speed=0.01, num_nextn_predict_layers=1)
    before = biases(model)
    recorded = record_loads(model, monkeypatch)
    train(model, tmp_path, RouterBiasCallback(), **ACCUMULATED)
    assert len(recorded) == STEPS
    assert [[sum(load) for load in loads] for loads in recorded] == [[ROWS_PER_STEP * LENGTH * TOP_K] * 3] * STEPS
    for layer, (old, new) in enumerate(zip(before, biases(model), strict=True)):
        loads = torch.tensor([step[layer] for step in recorded], dtype=torch.float64)
        moved = torch.sign(loads.mean(1, keepdim=True) - loads).sum(0)
        torch.testing.assert_close((new - old).double(), 0.01 * moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings", [ACCUMULATED, {"gradient_checkpointing": True}], ids=["accumulated", "checkpointed"]
)
def test_accumulation_and_checkpointing_change_no_bias(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Without learning, the loads are those of the rows alone."""
    results = []
    for given in ({}, settings):
        model = build_ours(bias_update_speed=0.01)
        train(model, tmp_path, RouterBiasCallback(), learning_rate=0.0, **given)
        results.append(biases(model))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_largest_load_over_the_mean_is_in_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By layer: 0 is dense, 1 and 2 route, 3 is the MTP module."""
    model = build_ours(num_nextn_predict_layers=1)
    recorded = record_loads(model, monkeypatch)
    trainer = train(model, tmp_path, RouterBiasCallback(), **ACCUMULATED)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == STEPS
    for entry, loads in zip(entries, recorded, strict=True):
        expected = {
            f"expert_load_max_over_mean/layer_{n}": max(load) * 8 / sum(load) for n, load in enumerate(loads, 1)
        }
        logged = {name: value for name, value in entry.items() if name.startswith("expert_load")}
        assert logged == pytest.approx(expected, rel=1e-6)


def test_a_log_entry_of_several_steps_has_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_ours()
    recorded = record_loads(model, monkeypatch)
    trainer = train(model, tmp_path, RouterBiasCallback(), logging_steps=STEPS)
    expected = sum(max(loads[0]) * 8 / sum(loads[0]) for loads in recorded) / STEPS
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["expert_load_max_over_mean/layer_1"] == pytest.approx(expected, rel=1e-6)
    assert "expert_load_max_over_mean/layer_1" not in trainer.state.log_history[-1]


def test_frozen_biases_stay_and_the_load_is_logged(tmp_path: Path) -> None:
    model = build_ours(bias_update_speed=0.01)
    before = biases(model)
    trainer = train(model, tmp_path, RouterBiasCallback(speed=0.0))
    assert all(torch.equal(old, new) for old, new in zip(before, biases(model), strict=True))
    assert trainer.state.log_history[0]["expert_load_max_over_mean/layer_1"] > 1
    assert model.config.bias_update_speed == 0.01


def test_without_the_callback_nothing_moves(tmp_path: Path) -> None:
    model = build_ours(bias_update_speed=0.01)
    before = biases(model)
    train(model, tmp_path, None)
    assert all(torch.equal(old, new) for old, new in zip(before, biases(model), strict=True))


def test_a_saved_checkpoint_has_the_bias_of_its_step(tmp_path: Path) -> None:
    model = build_ours(bias_update_speed=0.01)
    train(model, tmp_path, RouterBiasCallback(), save_strategy="steps", save_steps=STEPS)
    saved = type(model).from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert all(torch.equal(one, other) for one, other in zip(biases(saved), biases(model), strict=True))


def test_biases_move_under_adapters(tmp_path: Path) -> None:
    model = build_ours(bias_update_speed=0.01)
    before = biases(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_a_proj"], task_type="CAUSAL_LM"))
    trainer = train(adapted, tmp_path, RouterBiasCallback())
    assert all(not torch.equal(old, new) for old, new in zip(before, biases(model), strict=True))
    assert "expert_load_max_over_mean/layer_2" in trainer.state.log_history[0]


def test_evaluation_in_between_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_ours()
    recorded = record_loads(model, monkeypatch)
    tokens = draw_tokens(5, LENGTH, seed=3)

    class Evaluate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            model.eval()(tokens)
            model.train()

    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": row, "labels": row} for row in draw_tokens(16, LENGTH)]
    callbacks: list[Any] = [Evaluate(), RouterBiasCallback()]
    Trainer(model, arguments, train_dataset=cast(Any, rows), callbacks=callbacks).train()
    assert [[sum(load) for load in loads] for loads in recorded] == [[8 * LENGTH * TOP_K] * 2] * 2


def test_wrapped_models_are_found() -> None:
    model = build_ours()
    compiled: Any = torch.compile(model)
    for wrapped in (model, torch.nn.ModuleList([model]), compiled, torch.nn.DataParallel(model)):
        assert seeklet_model(wrapped) is model


def test_moe_layers_are_in_the_order_of_their_loads() -> None:
    model = build_ours(first_k_dense_replace=2, num_nextn_predict_layers=2)
    assert moe_layer_indices(model) == moe_layer_indices(model.model) == [2, 3, 4]
    assert len(model.update_router_bias()) == 3


def test_max_over_mean() -> None:
    load = torch.tensor([[4, 0, 2, 2], [3, 3, 3, 3], [0, 0, 0, 0]])
    assert max_over_mean(load).tolist() == [2.0, 1.0, 1.0]


def test_another_model_is_refused_before_training(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    with pytest.raises(NotASeekletModelError, match="in seeklet models only; got a LlamaForCausalLM") as caught:
        train(LlamaForCausalLM(config), tmp_path, RouterBiasCallback())
    assert isinstance(caught.value, SeekletError)
