"""Predicted memory against what the allocator saw; all configurations are in benchmarks/bench_plan.py."""

import pytest
import torch
from torch import nn

from seeklet.finetune.demo.nano import student_config, teacher_config
from seeklet.finetune.plan.check import ALL_TARGETS, Case, make_recipe, measure, predict
from seeklet.finetune.plan.measure import measure_peak
from seeklet.finetune.plan.trace import trace_step


@pytest.mark.parametrize(
    ("case", "make_config"),
    [
        (Case("full", 4, 192), teacher_config),
        (Case("full, checkpointing, accumulated", 2, 192, checkpointing=True, accumulation=2), teacher_config),
        (Case("LoRA", 4, 192, ALL_TARGETS), teacher_config),
        (Case("LoRA of attention", 4, 192, ("attention",)), teacher_config),
        (Case("dense", 4, 192), student_config),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else None,
)
def test_prediction_is_within_five_percent(case, make_config, tmp_path):
    torch.manual_seed(0)
    config = make_config()
    recipe = make_recipe(case, config, tmp_path)
    assert predict(recipe) == pytest.approx(measure(recipe, config), rel=0.05)


class Chain(nn.Module):
    """Two layers of 64 x 64 without a bias, whose loss is the mean."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 64)
        self.first, self.second = (nn.Linear(64, 64, bias=False) for _ in range(2))

    def forward(self, input_ids, labels, use_cache):
        class Output:
            loss = self.second(self.first(self.embed(input_ids))).mean()

        return Output


def test_a_trace_by_hand():
    """Of 1,024 tokens of 64 numbers in fp32 each layer's input is kept; the last output goes into the mean."""
    with torch.device("meta"):
        model = Chain()
    step = trace_step(model, 4, 256)
    numbers = 1024 * 64 * 4
    # The embedding's output and the first layer's are inputs of layers; that of the second lives until the mean.
    assert step.saved == 2 * numbers + 4
    weights = (64 * 64 * 2 + 16 * 64) * 4
    assert step.gradients_at_peak <= weights
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())


def test_peak_counts_what_is_there_at_once():
    def work():
        for _ in range(3):
            torch.ones(1 << 20)
        return torch.ones(1 << 20) + torch.ones(1 << 20)

    assert measure_peak(work) == 3 * (4 << 20)
