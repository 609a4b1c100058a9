"""Predicted memory against what the allocator saw; all configurations are in benchmarks/bench_plan.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from seeklet.finetune.demo.nano import student_config, teacher_config
from seeklet.finetune.memory import count_bytes
from seeklet.finetune.plan.activations import Activations, fit_activations
from seeklet.finetune.plan.check import ALL_TARGETS, Case, make_recipe, measure, predict
from seeklet.finetune.plan.cluster import make_cluster
from seeklet.finetune.plan.loading import plan_loading
from seeklet.finetune.plan.measure import measure_peak
from seeklet.finetune.plan.memory import plan_memory, predict_training_bytes
from seeklet.finetune.plan.model_config import build_on_meta
from seeklet.finetune.plan.request import make_request
from seeklet.finetune.plan.trace import trace_step
from seeklet.modeling import SeekletConfig


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


def small_config():
    """Return a mixture whose rows go into blocks of 64."""
    sizes: dict[str, Any] = {
        **{"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "vocab_size": 128},
        **{"num_attention_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32},
        **{"qk_rope_head_dim": 32, "v_head_dim": 32, "num_hidden_layers": 2, "first_k_dense_replace": 1},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    }
    return SeekletConfig(**sizes)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_by_hand(kind, tmp_path):
    """4 or 8 bits a number and a scale in fp32 for each 64; router, embedding, head and `kv_b_proj` as they were."""
    config = small_config()
    request = make_request(
        make_recipe(Case(kind, 2, 64, ALL_TARGETS, quantization=kind), config, tmp_path), make_cluster("h200", 1)
    )
    attention = 64 * (64 + 64 + 32) + 64 * 2 * 64 + 64 * 64
    numbers = 2 * attention + 3 * 64 * 128 + (4 + 1) * 3 * 64 * 64
    whole = count_bytes([*build_on_meta(config, torch.float32).parameters()])
    held = [p for p in request.build().parameters() if not p.requires_grad]
    codes = [p for p in held if p.dtype == torch.uint8]
    assert sum(p.numel() for p in codes) == numbers * (1 if kind == "int8" else 0.5)
    scales = [b for name, b in request.build().named_buffers() if name.endswith("_absmax")]
    assert sum(b.numel() for b in scales) == numbers / 64
    assert count_bytes(held) - count_bytes(codes) == whole - 4 * numbers
    predicted = predict_training_bytes(request) or 0
    full = predict(make_recipe(Case("LoRA", 2, 64, ALL_TARGETS), config, tmp_path))
    saved = 4 * numbers - count_bytes(codes) - count_bytes(scales)
    # Beside the weights, at most a matrix is expanded at a time.
    assert 0 <= predicted - (full - saved) <= 4 * 2 * 64 * 128


def test_scales_quantised_too_by_hand(tmp_path):
    """A byte for each scale, and four for each row of a matrix."""
    recipe = make_recipe(Case("nf4", 2, 64, ALL_TARGETS, quantization="nf4"), small_config(), tmp_path)
    double = replace(recipe, model=replace(recipe.model, double_quantization=True))
    once, twice = (make_request(each, make_cluster("h200", 1)).build().named_buffers() for each in (recipe, double))
    scales, stored = ([b for name, b in buffers if name.endswith("_absmax")] for buffers in (once, twice))
    rows = sum(scale[..., 0].numel() for scale in scales)
    assert count_bytes(stored) == sum(scale.numel() for scale in scales) + 4 * rows


@pytest.mark.parametrize("tokens", [512, 16384])
def test_a_deep_model_follows_from_shallow_ones(tokens, tmp_path):
    """Whether its embedding's gradient (few tokens) or its layers (many) take most."""
    config: Any = student_config()
    config.vocab_size, config.num_hidden_layers = 8192, 7
    case = Case("all weights", tokens // 256, 256, checkpointing=True)
    request = make_request(make_recipe(case, config, tmp_path), make_cluster("h200", 1))
    model = request.build(num_hidden_layers=7)
    traced = max(trace_step(model, tokens // 256, 256, at_once=True).activations)
    assert fit_activations(request).of(tokens) == pytest.approx(traced, rel=0.10)


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


def test_shared_experts_by_hand(tmp_path):
    """Of two GPUs each holds half of the experts and of their adapters, and all of the rest."""
    recipe = make_recipe(Case("LoRA", 1, 64, ALL_TARGETS), small_config(), tmp_path)
    recipe = replace(recipe, trainer={**recipe.trainer, "expert_parallel": 2})
    cluster, activations = make_cluster("h200", 2), Activations(0, 0, 0, 0, 1, 1)
    request = make_request(recipe, cluster)
    assert (request.layout, request.expert_parallel) == ("ddp", 2)
    model = request.build()
    memory = plan_memory(request, cluster, model, activations)
    whole = plan_memory(request.with_changes(expert_parallel=1), cluster, model, activations)
    # Gate, up and down projections of 4 experts, and of rank 8 what is added to the two tensors that hold them.
    weights = 3 * 4 * 64 * 64
    factors = 4 * 8 * (64 + 2 * 64 + 64 + 64)
    assert whole.weights - memory.weights == 4 * (weights + factors) // 2
    assert whole.gradients - memory.gradients == 4 * factors // 2
    assert whole.optimizer - memory.optimizer == 8 * factors // 2
    hosts = [plan_loading(request, cluster, model, each.weights).host for each in (whole, memory)]
    # Two processes read on one node.
    assert hosts[0] - hosts[1] == 2 * (whole.weights - memory.weights)
