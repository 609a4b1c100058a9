"""Latent attention: its two formulations agree, no token sees what it may not, adapters count in both."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from seeklet.modeling import attention
from tests.modeling.nano import PAD, build_ours, draw_tokens, gradients, padding_mask, relative_error

EXACT = 1e-12
PACKED_LENGTHS = (5, 7, 2)


def prefix_and_step(model: Any, tokens: torch.Tensor, split: int, **kwargs: Any) -> torch.Tensor:
    """Return the logits of `tokens` from `split` on, those before it given through the cache."""
    mask = kwargs.pop("attention_mask", None)
    prefix_mask = None if mask is None else mask[:, :split]
    prefix = model(tokens[:, :split], attention_mask=prefix_mask, use_cache=True, **kwargs)
    return model(tokens[:, split:], attention_mask=mask, past_key_values=prefix.past_key_values, **kwargs).logits


@pytest.fixture(params=["absorbed", "expanded"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one formulation, whichever is cheaper."""
    monkeypatch.setattr(attention, "decode_is_cheaper", lambda *_: request.param == "absorbed")
    return request.param


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_formulations_give_the_same_logits_and_gradients(
    monkeypatch: pytest.MonkeyPatch, implementation: str, padding: str | None
) -> None:
    """Over whole sequences, in float64: the absorbed form for training too."""
    model = build_ours(attn_implementation=implementation, balance_loss_weight=0.0).double()
    tokens = draw_tokens(2, 9)
    mask = None if padding is None else padding_mask((9, 6), 9, padding)
    labels = tokens.clone()
    if mask is not None:
        # Not the first real token either: what padding would predict is left open.
        labels[:, 0] = -100
        labels[:, 1:].masked_fill_(mask[:, 1:] * mask[:, :-1] == 0, -100)
    results = []
    for absorbed in (True, False):
        monkeypatch.setattr(attention, "decode_is_cheaper", lambda *_, chosen=absorbed: chosen)
        model.zero_grad()
        loss = model(tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        results.append({"loss": loss.detach(), **{name: g.clone() for name, g in gradients(model).items()}})
    errors = {name: relative_error(results[0][name], results[1][name]) for name in results[0]}
    assert {name: error for name, error in errors.items() if not error <= 1e-10} == {}


@pytest.mark.parametrize("split", [1, 6, 8])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [None, "left"])
def test_cached_prefix_changes_nothing(formulation: str, implementation: str, split: int, padding: str | None) -> None:
    model = build_ours(attn_implementation=implementation).double().eval()
    tokens = draw_tokens(2, 9)
    given: dict[str, Any] = {}
    if padding is not None:
        given["attention_mask"] = padding_mask((9, 9 - split // 2), 9, padding)
    with torch.no_grad():
        whole = model(tokens, **given).logits[:, split:]
        assert relative_error(prefix_and_step(model, tokens, split, **given), whole) <= EXACT


def test_gradients_flow_through_a_cached_prefix(formulation: str) -> None:
    model = build_ours().double().eval()
    tokens = draw_tokens(2, 9)
    weights = torch.randn(2, 3, model.config.vocab_size, dtype=torch.float64)
    results = []
    for logits in (model(tokens).logits[:, 6:], prefix_and_step(model, tokens, 6)):
        model.zero_grad()
        (logits * weights).sum().backward()
        results.append({name: g.clone() for name, g in gradients(model).items()})
    errors = {name: relative_error(results[1][name], results[0][name]) for name in results[0]}
    assert {name: error for name, error in errors.items() if not error <= 1e-10} == {}


def test_few_queries_are_absorbed_and_whole_sequences_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_ours().eval()
    used = []
    for name in ("_absorbed", "_expanded"):
        original = getattr(attention.SeekletAttention, name)

        def record(self, *args, called=name, run=original, **kwargs):
            used.append(called)
            return run(self, *args, **kwargs)

        monkeypatch.setattr(attention.SeekletAttention, name, record)
    tokens = draw_tokens(1, 60)
    with torch.no_grad():
        cache = model(tokens[:, :59], use_cache=True).past_key_values
        assert used == ["_expanded"] * 3
        used.clear()
        model(tokens[:, 59:], past_key_values=cache)
        assert used == ["_absorbed"] * 3


def test_no_token_sees_a_later_one(formulation: str) -> None:
    model = build_ours().double().eval()
    tokens = draw_tokens(1, 9)
    changed = tokens.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 90
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    assert relative_error(after[:, :5], before[:, :5]) <= EXACT
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(formulation: str, side: str) -> None:
    """Whatever stands in the padding: logits of the real tokens are those of the row alone."""
    model = build_ours().double().eval()
    tokens, mask = draw_tokens(2, 9), padding_mask((9, 6), 9, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alone = tokens[1:, 3:] if side == "left" else tokens[1:, :6]
    with torch.no_grad():
        padded = model(tokens, attention_mask=mask, position_ids=positions).logits[1][mask[1].bool()]
        assert relative_error(padded, model(alone).logits[0]) <= EXACT
        other = tokens.masked_fill(mask == 0, PAD)
        again = model(other, attention_mask=mask, position_ids=positions).logits[1][mask[1].bool()]
    assert relative_error(again, padded) <= EXACT


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_sequences_do_not_see_each_other(implementation: str, training: bool) -> None:
    """Also with the default `use_cache`, for which transformers' own model lets them."""
    model = build_ours(attn_implementation=implementation).double().train(training)
    tokens = draw_tokens(1, sum(PACKED_LENGTHS))
    positions = torch.cat([torch.arange(n) for n in PACKED_LENGTHS])[None]
    ends = torch.tensor([0, *PACKED_LENGTHS]).cumsum(0)
    alone = torch.cat([model(part).logits for part in tokens.split(PACKED_LENGTHS, dim=1)], dim=1)
    assert relative_error(model(tokens, position_ids=positions).logits, alone) <= EXACT
    assert relative_error(model(tokens, cu_seqlens=ends).logits, alone) <= EXACT


def test_dropout_acts_in_training_only() -> None:
    model = build_ours(attention_dropout=0.5)
    tokens = draw_tokens(1, 8)
    with torch.no_grad():
        assert not torch.equal(model(tokens).logits, model(tokens).logits)
        model.eval()
        assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_decode_in_training_mode_drops_out_too() -> None:
    """The absorbed form has no dropout, so it is not taken where there should be one."""
    model = build_ours(attention_dropout=0.5)
    tokens = draw_tokens(1, 60)
    with torch.no_grad():
        cache = model.eval()(tokens[:, :59], use_cache=True).past_key_values
        model.train()
        steps = [model(tokens[:, 59:], past_key_values=copy.deepcopy(cache)).logits for _ in range(2)]
    assert not torch.equal(*steps)


def with_adapter(model: Any, **settings: Any) -> Any:
    """Return `model` with a LoRA adapter whose both matrices are random, so that it changes something."""
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return adapted.eval()


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "with a bias": {"lora_bias": True},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_on_the_expanding_projection_counts_in_both_formulations(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also in the absorbed form, which reads the matrix instead of calling the layer."""
    model = build_ours().double().eval()
    tokens = draw_tokens(2, 9)
    with torch.no_grad():
        plain = model(tokens).logits
        adapted = with_adapter(model, target_modules=["kv_b_proj"], **ADAPTERS[kind])
        monkeypatch.setattr(attention, "decode_is_cheaper", lambda *_: False)
        expanded = adapted(tokens).logits
        monkeypatch.setattr(attention, "decode_is_cheaper", lambda *_: True)
        assert relative_error(plain, expanded) > 1e-3
        assert relative_error(adapted(tokens).logits, expanded) <= 1e-10
        assert relative_error(prefix_and_step(adapted, tokens, 8), expanded[:, 8:]) <= 1e-10


def test_adapter_decodes_as_merged_weights_do() -> None:
    adapted = with_adapter(build_ours().double(), target_modules=["kv_b_proj", "q_b_proj", "o_proj"])
    tokens = draw_tokens(2, 9)
    with torch.no_grad():
        step = prefix_and_step(adapted, tokens, 8)
        merged = adapted.merge_and_unload().eval()
        assert relative_error(step, prefix_and_step(merged, tokens, 8)) <= 1e-10


def test_gradients_of_an_adapter_are_the_same_in_both_formulations(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = with_adapter(build_ours().double(), target_modules=["kv_b_proj"])
    tokens = draw_tokens(2, 9)
    results = []
    for absorbed in (True, False):
        monkeypatch.setattr(attention, "decode_is_cheaper", lambda *_, chosen=absorbed: chosen)
        adapted.zero_grad()
        adapted(tokens, labels=tokens).loss.backward()
        results.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert len(results[0]) == 6
    assert all(relative_error(results[0][name], results[1][name]) <= 1e-10 for name in results[0])
