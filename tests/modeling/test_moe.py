"""The mixture-of-experts layer: what it counts, what stays fp32, and that transformers' experts agree with ours."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from seeklet.modeling import SeekletForCausalLM
from seeklet.modeling.moe import SeekletMoE, SeekletRouter
from tests.modeling.nano import (
    PAD,
    assert_same_gradients,
    build_ours,
    draw_tokens,
    padding_mask,
    relative_error,
)


def routers(model: torch.nn.Module) -> list[SeekletRouter]:
    return [module for module in model.modules() if isinstance(module, SeekletRouter)]


def layers(model: torch.nn.Module) -> list[SeekletMoE]:
    return [module for module in model.modules() if isinstance(module, SeekletMoE)]


def counts(model: torch.nn.Module) -> list[list[int]]:
    """Return the expert counts of every MoE layer that has any."""
    return [layer.expert_counts.tolist() for layer in layers(model) if layer.expert_counts is not None]


CASTS = {
    "to bfloat16": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "to float64 and back": lambda model: model.double().float(),
    "twice": lambda model: model.half().bfloat16(),
    "copied, then cast": lambda model: copy.deepcopy(model).bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_router_bias_is_the_same_fp32_numbers_after_a_cast(cast: str) -> None:
    """In bf16, a bias of 1 moved by 0.001 would not move."""
    model = build_ours(num_nextn_predict_layers=1)
    with torch.no_grad():
        for router in routers(model):
            router.e_score_correction_bias.add_(1e-4)
    expected = [router.e_score_correction_bias.clone() for router in routers(model)]
    model = CASTS[cast](model)
    assert len(expected) == 3
    for router, bias in zip(routers(model), expected, strict=True):
        assert router.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(router.e_score_correction_bias, bias)
        assert router.weight.dtype == model.lm_head.weight.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_router_bias_is_fp32_after_loading(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build_ours()
    model.save_pretrained(tmp_path)
    loaded = SeekletForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.lm_head.weight.dtype == dtype
    for actual, expected in zip(routers(loaded), routers(model), strict=True):
        assert actual.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(actual.e_score_correction_bias, expected.e_score_correction_bias)


def test_router_computes_in_fp32_in_a_bf16_model() -> None:
    model = build_ours().bfloat16()
    router = routers(model)[0]
    tokens = torch.randn(50, model.config.hidden_size, dtype=torch.bfloat16)
    logits, weights, _ = router(tokens)
    assert logits.dtype == weights.dtype == torch.float32
    exact = tokens.double() @ router.weight.double().t()
    assert relative_error(logits, exact) <= 1e-6


def test_a_router_that_cannot_tell_experts_apart_takes_the_lowest() -> None:
    """As at the start, where all weights may be zero; on any device."""
    router = routers(build_ours())[0]
    with torch.no_grad():
        router.weight.zero_()
        router.e_score_correction_bias.zero_()
    _, _, indices = router(torch.randn(5, 40))
    assert indices.tolist() == [[0, 1, 2]] * 5


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_of_transformers_agree_with_ours(implementation: str) -> None:
    model = build_ours(balance_loss_weight=0.0)
    other = copy.deepcopy(model)
    other.set_experts_implementation(implementation)
    tokens = draw_tokens(2, 9)
    losses = [m(tokens, labels=tokens).loss for m in (model, other)]
    assert relative_error(losses[1], losses[0]) <= 1e-5
    for loss in losses:
        loss.backward()
    assert_same_gradients(other, model, 1e-5)


def test_ours_is_the_default_implementation() -> None:
    assert build_ours().config._experts_implementation == "eager"


def test_without_shared_experts_there_are_none() -> None:
    model = build_ours(n_shared_experts=0)
    assert all(layer.shared_experts is None for layer in layers(model))
    assert not any("shared_experts" in name for name in model.state_dict())


def chosen_by_router(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> list[list[int]]:
    """Return how often each layer's router chooses each expert for real tokens, read off its own output."""
    model.eval()
    with torch.no_grad():
        indices = model.model(tokens, attention_mask=mask, output_router_indices=True).router_indices
    model.train()
    real = torch.ones_like(tokens) if mask is None else mask
    rows = real.flatten().bool()
    return [[int((layer[rows] == expert).sum()) for expert in range(8)] for layer in indices]


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_counts_the_real_tokens_of_training(side: str | None) -> None:
    model = build_ours()
    tokens = draw_tokens(2, 9)
    mask = None if side is None else padding_mask((9, 4), 9, side)
    expected = chosen_by_router(model, tokens, mask)
    assert counts(model) == []
    model(tokens, attention_mask=mask)
    assert counts(model) == expected
    assert [sum(layer) for layer in counts(model)] == [3 * (18 if mask is None else 13)] * 2


def test_padding_behind_packed_rows_is_not_counted() -> None:
    model = build_ours()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 0, 0, 0, 0]])
    model(draw_tokens(2, 9), position_ids=positions)
    assert [sum(layer) for layer in counts(model)] == [3 * (9 + 5)] * 2


def test_counts_add_up_over_forward_passes_and_not_in_evaluation() -> None:
    model = build_ours()
    first, second = draw_tokens(2, 9), draw_tokens(3, 4, seed=2)
    one, two = chosen_by_router(model, first), chosen_by_router(model, second)
    model(first)
    model(second)
    model.eval()(first)
    assert counts(model) == [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(one, two, strict=True)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(reentrant: bool) -> None:
    model = build_ours(num_nextn_predict_layers=1, balance_loss_weight=0.0)
    tokens = draw_tokens(2, 9)
    model(tokens, labels=tokens).loss.backward()
    expected = counts(model)
    assert len(expected) == 3
    for layer in layers(model):
        layer.expert_counts = None
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(tokens, labels=tokens).loss.backward()
    assert counts(model) == expected


def test_expert_load_is_what_the_routers_chose() -> None:
    model = build_ours()
    tokens, mask = draw_tokens(2, 9), padding_mask((9, 4), 9, "left")
    load = model(tokens, attention_mask=mask, output_expert_load=True).expert_load
    assert [layer.tolist() for layer in load] == chosen_by_router(model, tokens, mask)
    assert model(tokens).expert_load is None


def test_counts_are_saved_nowhere() -> None:
    model = build_ours()
    names = set(model.state_dict())
    model(draw_tokens(1, 5))
    assert set(model.state_dict()) == names
    assert not any("count" in name for name in names)


def test_padding_tokens_in_training_do_not_disturb_the_real_ones() -> None:
    model = build_ours(balance_loss_weight=0.0).double()
    tokens, mask = draw_tokens(2, 9), padding_mask((9, 4), 9, "right")
    labels = tokens.masked_fill(mask == 0, -100)
    gradients = []
    for padding in (PAD, 50):
        model.zero_grad()
        model(tokens.masked_fill(mask == 0, padding), attention_mask=mask, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert relative_error(one, other) <= 1e-10
