"""Training: the learning rate by hand, accumulation equal to one large batch, and a loss that falls."""

import pytest
import torch

from seeklet.finetune.demo.nano import count_parameters, moe_layer_names, nano_config
from seeklet.finetune.demo.task import ChainSums
from seeklet.finetune.demo.tokenizer import build_tokenizer
from seeklet.finetune.demo.train import History, TrainSettings, learning_rate_share, train
from seeklet.modeling import SeekletForCausalLM


def train_nano(**settings) -> tuple[SeekletForCausalLM, History]:
    torch.manual_seed(0)
    config = nano_config()
    # A mean over the sequences of a batch, which parts of it do not add up to exactly.
    config.balance_loss_weight = 0.0
    # In double precision, so that only a wrong weighting of the parts can tell the two ways apart.
    model = SeekletForCausalLM(config).double()
    task = ChainSums(seed=0, num_test=0, num_validation=4)
    chosen = TrainSettings(seed=0, **{"steps": 2, "warmup_steps": 1, **settings})
    return model, train(model, build_tokenizer(), task, chosen, lambda record: None, lambda record: None)


def test_accumulated_gradients_equal_those_of_one_large_batch() -> None:
    _, whole = train_nano(batch_size=8)
    _, parts = train_nano(batch_size=2, gradient_accumulation=4)
    for a, b in zip(whole.steps, parts.steps, strict=True):
        assert a.lm_loss == pytest.approx(b.lm_loss, rel=1e-6)
        assert a.mtp_loss == pytest.approx(b.mtp_loss, rel=1e-6)
        assert a.expert_load == b.expert_load


def test_loss_falls_and_validation_is_recorded() -> None:
    _, history = train_nano(steps=12, batch_size=8, validate_every=6)
    assert history.steps[-1].lm_loss < 0.8 * history.steps[0].lm_loss
    assert [record.step for record in history.validations] == [6, 12]
    assert not history.stopped_early


def test_training_stops_when_accurate_enough() -> None:
    _, history = train_nano(steps=9, batch_size=2, validate_every=3, stop_accuracy=0.0)
    assert len(history.steps) == 3
    assert history.stopped_early


@pytest.mark.parametrize(("step", "share"), [(0, 0.02), (49, 1.0), (50, 1.0), (525, 0.55), (1000, 0.1)])
def test_learning_rate_by_hand(step: int, share: float) -> None:
    settings = TrainSettings(steps=1000, seed=0, warmup_steps=50, final_learning_rate_share=0.1)
    assert learning_rate_share(step, settings) == pytest.approx(share)


def test_nano_model_has_every_part() -> None:
    model = SeekletForCausalLM(nano_config())
    assert moe_layer_names(model) == ["layer 1", "layer 2", "layer 3", "layer 4", "MTP 1"]
    parameters = count_parameters(model)
    assert 400_000 < parameters["total"] < 650_000
    # One MoE layer has 8 experts of 3 * 80 * 32, of which a token uses 2.
    idle = 4 * 6 * 3 * 80 * 32
    assert parameters["active_per_token"] == parameters["total"] - parameters["mtp"] - idle
