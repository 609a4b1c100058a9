"""What training with TRL's trainer does to the weights: the same as a loop written out by hand, with every loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.collation import TokenCollator
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.losses import use_head_loss
from seeklet.finetune.sft_config import SeekletSFTConfig
from seeklet.finetune.sft_trainer import PARTS, SeekletSFTTrainer
from seeklet.modeling.kernels.linear_cross_entropy import reference
from tests.finetune.nano_checkpoints import CHATML, build_tokenizer
from tests.finetune.test_losses import build as build_dense
from tests.kernels.memory import largest_tensor_made
from tests.modeling.nano import SIZES, build_ours, draw_tokens, gradients, relative_error

LENGTHS = (9, 5, 7, 6, 8, 4, 9, 3)


def tokenizer() -> PreTrainedTokenizerBase:
    """Return one that pads with 0, as the nano models have it; nothing else of it is used."""
    made = build_tokenizer(CHATML)
    made.pad_token_id = 0
    return made


def make_rows(lengths: Sequence[int] = LENGTHS, seed: int = 5) -> Dataset:
    tokens = draw_tokens(len(lengths), max(lengths), seed).tolist()
    return Dataset.from_list(
        [
            {"input_ids": row[:length], "assistant_masks": [0, 0] + [1] * (length - 2)}
            for row, length in zip(tokens, lengths, strict=True)
        ]
    )


def make_trainer(
    model: Any, folder: Path, rows: Dataset | None = None, validation: Dataset | None = None, **settings: Any
) -> SeekletSFTTrainer:
    """Return a trainer that steps without momentum, takes the rows in order, and logs each step."""
    mtp_loss, callbacks = settings.pop("mtp_loss", "full"), settings.pop("callbacks", ())
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "report_to": "none",
        "disable_tqdm": True,
    }
    config = SeekletSFTConfig(output_dir=str(folder), **defaults | settings)
    rows = make_rows() if rows is None else rows
    return SeekletSFTTrainer(model, config, tokenizer(), rows, validation, mtp_loss=mtp_loss, callbacks=callbacks)


def train_by_hand(model: Any, micro_batches: int = 2, learning_rate: float = 0.5, steps: int = 2) -> list[float]:
    """Train as the trainer is to: mean loss over the labels of a step, plain SGD; return the next-token losses."""
    rows, collate, losses = list(make_rows()), TokenCollator(0), []
    for step in range(steps):
        batches = [
            collate(rows[start : start + 2])  # pyright: ignore[reportArgumentType]
            for start in range(2 * micro_batches * step, 2 * micro_batches * (step + 1), 2)
        ]
        items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        losses.append(0.0)
        output: Any
        for batch in batches:
            output = model(**batch, num_items_in_batch=items, use_cache=False)
            output.loss.backward()
            losses[-1] += getattr(output, "lm_loss", output.loss).item()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= learning_rate * parameter.grad
        model.zero_grad()
        if hasattr(model, "update_router_bias"):
            model.update_router_bias()
    return losses


def mixture(**changes: Any) -> Any:
    settings: dict[str, Any] = {"num_nextn_predict_layers": 1, "mtp_loss_weight": 0.3, "balance_loss_weight": 0.05}
    settings["bias_update_speed"] = 0.01
    return build_ours(**settings | changes).double()


def states(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("name", ["ours", "llama", "llama, tied"])
def test_weights_and_losses_are_those_of_a_loop_by_hand(tmp_path: Path, name: str, micro_batches: int) -> None:
    build = mixture if name == "ours" else lambda: use_head_loss(build_dense(name))
    trainer = make_trainer(build(), tmp_path, gradient_accumulation_steps=micro_batches)
    trainer.train()
    expected = build()
    losses = train_by_hand(expected, micro_batches)
    before, actual, wanted = states(build()), states(trainer.model), states(expected)
    assert actual.keys() == wanted.keys()
    moved = [key for key in wanted if not torch.equal(before[key], wanted[key])]
    assert len(moved) == len(wanted), set(wanted) - set(moved)
    wrong = {key: error for key in wanted if (error := relative_error(actual[key], wanted[key])) > 1e-6}
    assert wrong == {}
    logged = [entry.get("lm_loss", entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)


class KeepGradients(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy it."""
        if not self.kept:
            self.kept = {name: grad.clone() for name, grad in gradients(model).items()}


def first_gradients(folder: Path, model: Any, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the gradients of the first step, and its entry in the log."""
    keep = KeepGradients()
    trainer = make_trainer(model, folder, max_steps=1, callbacks=[keep], **settings)
    trainer.train()
    return keep.kept, trainer.state.log_history[0]


OWN_OF_MTP = "model.layers.3."


def test_mtp_loss_reaches_the_gradient_everywhere_or_in_its_modules_only(tmp_path: Path) -> None:
    found = {}
    for mode in ("off", "detached", "full"):
        found[mode] = first_gradients(tmp_path, mixture(balance_loss_weight=0.0), mtp_loss=mode)
    (off, off_log), (detached, detached_log), (full, full_log) = found.values()
    assert "mtp_loss" not in off_log and detached_log["mtp_loss"] == full_log["mtp_loss"] > 0
    assert full_log["loss"] == pytest.approx(full_log["lm_loss"] + 0.3 * full_log["mtp_loss"], rel=1e-6)
    for name in full:
        own = name.startswith(OWN_OF_MTP)
        assert off[name].any() != own, name
        assert relative_error(detached[name], (full if own else off)[name]) <= 1e-10, name
        assert not torch.equal(full[name], off[name]), name


def test_balance_loss_reaches_the_gradient_of_the_routers(tmp_path: Path) -> None:
    (without, _), (with_loss, log) = (
        first_gradients(tmp_path, mixture(balance_loss_weight=weight, mtp_loss_weight=0.0), mtp_loss="off")
        for weight in (0.0, 0.5)
    )
    assert log["loss"] == pytest.approx(log["lm_loss"] + 0.5 * log["balance_loss"], rel=1e-6)
    routers = [name for name in with_loss if name.endswith("mlp.gate.weight") and not name.startswith(OWN_OF_MTP)]
    assert len(routers) == 2
    for name in routers:
        assert relative_error(with_loss[name], without[name]) > 1e-3, name


def test_with_an_adapter_the_losses_reach_only_the_adapter(tmp_path: Path) -> None:
    settings = AdapterSettings(targets=("attention", "routed_experts", "mtp"), rank=2)
    results = {}
    for mode in ("off", "detached", "full"):
        torch.manual_seed(0)
        model = attach(mixture(), settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
        results[mode] = first_gradients(tmp_path, model, mtp_loss=mode)[0]
    for name in results["full"]:
        is_lora, own = "lora_" in name, OWN_OF_MTP in name
        assert results["full"][name].any() == is_lora, name
        assert results["off"][name].any() == (is_lora and not own), name
        assert results["detached"][name].any() == is_lora, name
        if is_lora and not own:
            assert relative_error(results["detached"][name], results["off"][name]) <= 1e-10, name
            assert relative_error(results["full"][name], results["off"][name]) > 1e-6, name


def test_router_biases_move_by_the_load_of_the_whole_step(tmp_path: Path) -> None:
    model, expected = mixture(), mixture()
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    rows, collate = list(make_rows()), TokenCollator(0)
    for start in (0, 2):
        expected(**collate(rows[start : start + 2]))  # pyright: ignore[reportArgumentType]
    loads = expected.update_router_bias()
    biases = {name: b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")}
    assert len(biases) == len(loads) == 3
    for name, bias in expected.named_buffers():
        if name in biases:
            torch.testing.assert_close(biases[name], bias, rtol=0, atol=0)
    ratios = [(load.max() / load.float().mean()).item() for load in loads]
    entry = trainer.state.log_history[0]
    assert [entry[f"expert_load_max_over_mean/layer_{n}"] for n in (1, 2, 3)] == pytest.approx(ratios)


def test_no_logits_are_made_in_training_and_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 4)
    model = build_ours(num_nextn_predict_layers=1, vocab_size=5000)
    trainer = make_trainer(model, tmp_path, validation=make_rows(), eval_strategy="steps", eval_steps=1)
    # The gradients of the embedding and of the head; the logits of the 51 tokens that are held out are more.
    assert largest_tensor_made(trainer.train) == 5000 * SIZES["hidden_size"]


def test_held_out_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    model = mixture()
    rows = make_rows((9, 3, 5), seed=8)
    trainer = make_trainer(model, tmp_path, validation=rows, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    batch = TokenCollator(0)(list(rows))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        expected = model.eval()(**batch).lm_loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-9)
    assert "eval_entropy" not in metrics


def test_tokens_speed_and_memory_are_logged(tmp_path: Path) -> None:
    trainer = make_trainer(mixture(), tmp_path)
    trainer.train()
    first, second, _ = trainer.state.log_history
    assert (first["num_tokens"], second["num_tokens"]) == (sum(LENGTHS[:4]), sum(LENGTHS))
    assert trainer.state.num_input_tokens_seen == sum(LENGTHS)
    assert first["tokens_per_s"] > 0 and first["memory_gib"] > 0.1


def test_entries_over_several_steps_are_means(tmp_path: Path) -> None:
    each, both = (make_trainer(mixture(), tmp_path, logging_steps=steps) for steps in (1, 2))
    each.train()
    both.train()
    for name in ("loss", "lm_loss", "mtp_loss", "balance_loss"):
        mean = sum(entry[name] for entry in each.state.log_history[:2]) / 2
        assert both.state.log_history[0][name] == pytest.approx(mean, rel=1e-6), name


def test_nothing_of_trl_stays_on_the_model(tmp_path: Path) -> None:
    model = mixture()
    model.config.use_cache = True
    trainer = make_trainer(model, tmp_path)
    assert "forward" not in vars(model) and model.config.use_cache is True
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert names[0] == "RouterBiasCallback" and "PrinterCallback" not in names


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    settings = AdapterSettings(targets=("attention", "routed_experts"), rank=2)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = attach(mixture(), settings)
        kwargs = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer = make_trainer(model, tmp_path, **kwargs)
        trainer.train()
        assert isinstance(trainer.model, PeftModel)
        results.append(states(model))
    assert results[0].keys() == results[1].keys()
    assert {k for k in results[0] if relative_error(results[1][k], results[0][k]) > 1e-10} == set()


def test_a_short_trajectory_is_as_recorded(tmp_path: Path) -> None:
    """Losses of 4 steps with AdamW; any change of data order, loss, optimizer or balance shows here."""
    trainer = make_trainer(mixture(), tmp_path, max_steps=4, optim="adamw_torch", learning_rate=0.01, max_grad_norm=1.0)
    trainer.train()
    entries = [[entry[part] for part in PARTS] for entry in trainer.state.log_history if "loss" in entry]
    recorded = (
        [5.392675692, 4.874537231, 2.529521676],
        [5.421210611, 4.677115809, 2.663762747],
        [3.703588353, 3.341364476, 2.671292550],
        [4.049956284, 3.520111737, 2.625268193],
    )
    assert entries == [pytest.approx(each, rel=1e-6) for each in recorded]
