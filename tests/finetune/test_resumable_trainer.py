"""What a Trainer for checkpoints of any model does: loads all of one, and saves nothing that is no number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from seeklet.finetune.errors import TrainingError
from seeklet.finetune.losses import use_head_loss
from seeklet.finetune.sft_trainer import filled_up
from tests.finetune.test_sft_trainer import make_rows, make_trainer, mixture, states
from tests.modeling.nano import SIZES
from tests.modeling.tensors import assert_same

# Of an entry of the log, what does not depend on the clock.
MEASURED = {"step", "loss", "lm_loss", "mtp_loss", "balance_loss", "eval_loss", "expert_load_max_over_mean/layer_1"}


def stock_mixture() -> Any:
    """Return a model of transformers' own, whose experts are fused in memory and one by one on disk."""
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    return use_head_loss(Qwen3MoeForCausalLM(config))


def train(folder: Path, resume: bool = False, **settings: Any) -> Any:
    model = stock_mixture()
    settings = {"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1} | settings
    make_trainer(model, folder, **settings).train(
        resume_from_checkpoint=str(folder / "checkpoint-1") if resume else None
    )
    return model


def test_experts_of_other_mixtures_are_resumed(tmp_path: Path) -> None:
    expected = states(train(tmp_path))
    assert_same(states(train(tmp_path, resume=True)), expected)


def test_experts_of_the_best_checkpoint_are_loaded(tmp_path: Path) -> None:
    """A learning rate that makes everything worse: the first evaluation is the best."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 40.0}
    validation = make_rows((9, 3), seed=8)
    best = train(tmp_path / "a", validation=validation, **settings)
    once = train(tmp_path / "b", validation=validation, **settings, max_steps=1)
    assert_same(states(best), states(once))


def test_what_is_measured_is_the_same_after_resuming(tmp_path: Path) -> None:
    """The checkpoint is at the end of an epoch, where there is an evaluation, and between two entries of the log."""
    logs = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        settings = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
        rows, validation = make_rows((9, 5, 7, 6, 8, 4, 9, 3, 6, 6, 5, 9)), make_rows((9, 3), seed=8)
        trainer = make_trainer(mixture(), tmp_path, rows, validation, max_steps=6, **settings)
        trainer.train(resume_from_checkpoint=resume)
        logs.append([{name: entry[name] for name in entry.keys() & MEASURED} for entry in trainer.state.log_history])
    assert logs[1] == logs[0]
    assert [entry["step"] for entry in logs[0] if "eval_loss" in entry] == [3, 6]


def test_a_gradient_that_is_no_number_in_the_last_step_is_not_saved(tmp_path: Path) -> None:
    model = mixture()
    trainer = make_trainer(model, tmp_path, max_steps=2, max_grad_norm=1.0)

    def spoil(module: nn.Module, _: Any) -> None:
        # The loss of the last step is a number, and its gradient is not.
        if trainer.state.global_step == 1 and module.training:
            model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))

    model.lm_head.register_forward_pre_hook(spoil)
    model.register_forward_pre_hook(spoil)
    with pytest.raises(TrainingError, match=r"step 2: the norm of the gradient is nan"):
        trainer.train()


@pytest.mark.parametrize(("multiple", "expected"), [(1, 3), (2, 4), (3, 3), (4, 4), (8, 8)])
def test_rows_that_fill_up_are_not_to_be_predicted(multiple: int, expected: int) -> None:
    rows = make_rows((9, 3, 5))
    filled = filled_up(rows, multiple)
    assert len(filled) == expected
    assert filled[:3] == rows[:3]
    added = [filled[index]["assistant_masks"] for index in range(3, expected)]
    assert all(masks and not any(masks) for masks in added)
