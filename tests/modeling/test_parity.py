"""Logits and every parameter's gradient equal those of transformers' DeepseekV3ForCausalLM on the same weights."""

from typing import Any

import pytest
import torch

from seeklet.modeling.kernels.linear import reference as linear
from seeklet.modeling.kernels.linear_cross_entropy import reference as linear_cross_entropy
from seeklet.modeling.kernels.mla_attention import reference as mla_attention
from tests.modeling.nano import (
    PAD,
    assert_same_gradients,
    build_pair,
    draw_tokens,
    padding_mask,
    relative_error,
)

TOLERANCE = 1e-5
LENGTHS = (13, 7, 10)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "queries projected directly": {"q_lora_rank": None},
    "one group": {"n_group": 1, "topk_group": 1},
    "two groups, one kept": {"n_group": 2, "topk_group": 1},
    "two groups, both kept": {"n_group": 2, "topk_group": 2},
    "four groups, three kept": {"topk_group": 3},
    # Normalised, its weight would be 1 whatever the router says, and the router's gradient rounding noise.
    "one expert a token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
    "two shared experts": {"n_shared_experts": 2},
    "no dense layer": {"first_k_dense_replace": 0},
    "dense layers only": {"first_k_dense_replace": 3},
    "weights not normalised": {"norm_topk_prob": False},
    "weights scaled": {"routed_scaling_factor": 0.7},
    "rope in halves": {"rope_interleave": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "value heads larger than keys": {"v_head_dim": 24},
    "value heads as large as keys": {"v_head_dim": 20},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "dynamic rope": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
        "max_position_embeddings": 8,
    },
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn as DeepSeek-V3 has it": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 40.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn, mscale unlike mscale_all_dim": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "mscale": 0.707,
            "mscale_all_dim": 1.3,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.fixture(autouse=True)
def cut_as_large_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nano sizes take the paths of large ones: oneDNN's row blocks, blocks of attention, chunks of the loss."""
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(mla_attention, "BLOCK_ROWS", 5)
    monkeypatch.setattr(linear_cross_entropy, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(linear_cross_entropy, "MIN_CHUNK_ROWS", 16)


def make_batch(kind: str) -> dict[str, Any]:
    """Return tokens and labels of three rows, with the mask or the positions that `kind` asks for."""
    tokens = draw_tokens(len(LENGTHS), max(LENGTHS))
    if kind in ("left", "right"):
        mask = padding_mask(LENGTHS, max(LENGTHS), kind)
        labels = tokens.masked_fill(mask == 0, -100)
        return {"input_ids": tokens.masked_fill(mask == 0, PAD), "attention_mask": mask, "labels": labels}
    batch: dict[str, Any] = {"input_ids": tokens, "labels": tokens.clone()}
    if kind == "packed":
        lengths = ((5, 8), (1, 12), (6, 4, 3))
        batch["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
        # With a cache, which is its default, transformers takes packed sequences for one.
        batch["use_cache"] = False
    return batch


def real_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """Return where a token is no padding: bool (B, S)."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def assert_parity(stock: Any, ours: Any, batch: dict[str, Any]) -> None:
    """Assert equal logits in evaluation, then equal losses and gradients in training."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    real = real_tokens(batch)
    with torch.no_grad():
        expected = stock.eval()(**inputs).logits[real]
        assert relative_error(ours.eval()(**inputs).logits[real], expected) <= TOLERANCE
    expected = stock.train()(**batch).loss
    loss = ours.train()(**batch).loss
    assert relative_error(loss, expected) <= TOLERANCE
    expected.backward()
    loss.backward()
    assert_same_gradients(ours, stock, TOLERANCE)


@pytest.mark.parametrize("padding", ["none", "left", "right", "packed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_every_gradient_equal_stock(variant: str, attention: str, padding: str) -> None:
    stock, ours = build_pair(attn_implementation=attention, **VARIANTS[variant])
    assert_parity(stock, ours, make_batch(padding))


@pytest.mark.parametrize("padding", ["none", "left", "right", "packed"])
def test_gradient_checkpointing_changes_nothing(padding: str) -> None:
    stock, ours = build_pair()
    ours.gradient_checkpointing_enable()
    assert ours.is_gradient_checkpointing
    assert_parity(stock, ours, make_batch(padding))


def test_reentrant_gradient_checkpointing_changes_nothing() -> None:
    stock, ours = build_pair()
    ours.gradient_checkpointing_enable({"use_reentrant": True})
    ours.enable_input_require_grads()
    assert_parity(stock, ours, make_batch("left"))


@pytest.mark.parametrize("padding", ["none", "left", "right", "packed"])
def test_flex_attention_equals_stock_eager(padding: str) -> None:
    stock, _ = build_pair(attn_implementation="eager")
    _, ours = build_pair(attn_implementation="flex_attention")
    batch = make_batch(padding)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    real = real_tokens(batch)
    # Uncompiled: what the compiler makes of flex_attention is PyTorch's affair, and takes half a minute.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = stock.eval()(**inputs).logits[real]
        assert relative_error(ours.eval()(**inputs).logits[real], expected) <= TOLERANCE


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_attentions_hidden_states_and_router_logits_equal_stock(padding: str) -> None:
    stock, ours = build_pair(attn_implementation="eager")
    batch = make_batch(padding)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    real = real_tokens(batch)
    wanted = {"output_attentions": True, "output_hidden_states": True, "output_router_logits": True}
    with torch.no_grad():
        expected = stock.eval()(**inputs, **wanted)
        actual = ours.eval()(**inputs, **wanted)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 4
    assert len(actual.attentions) == len(expected.attentions) == 3
    assert len(actual.router_logits) == len(expected.router_logits) == 2
    for state, reference in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(state[real], reference[real]) <= TOLERANCE
    for weights, reference in zip(actual.attentions, expected.attentions, strict=True):
        # (B, heads, S, T): rows of padding queries mean nothing.
        assert relative_error(weights.mT.transpose(1, 3)[real], reference.mT.transpose(1, 3)[real]) <= TOLERANCE
    for logits, reference in zip(actual.router_logits, expected.router_logits, strict=True):
        assert relative_error(logits[real.flatten()], reference[real.flatten()]) <= TOLERANCE


def test_attentions_of_a_decode_step_equal_stock() -> None:
    """The absorbed form computes the very weights of the expanded one."""
    stock, ours = build_pair(attn_implementation="eager")
    tokens = draw_tokens(2, 9)
    weights = []
    for model in (stock.eval(), ours.eval()):
        with torch.no_grad():
            cache = model(tokens[:, :8], use_cache=True).past_key_values
            weights.append(model(tokens[:, 8:], past_key_values=cache, output_attentions=True).attentions)
    for expected, actual in zip(*weights, strict=True):
        assert actual.shape == expected.shape == (2, 3, 1, 9)
        assert relative_error(actual, expected) <= TOLERANCE


def test_logits_from_embeddings_and_of_chosen_positions_equal_stock() -> None:
    stock, ours = build_pair()
    tokens = draw_tokens(2, 9)
    with torch.no_grad():
        embeddings = stock.get_input_embeddings()(tokens)
        expected = stock.eval()(tokens).logits
        assert relative_error(ours.eval()(inputs_embeds=embeddings).logits, expected) <= TOLERANCE
        assert relative_error(ours(tokens, logits_to_keep=2).logits, expected[:, -2:]) <= TOLERANCE
        chosen = torch.tensor([1, 4])
        assert relative_error(ours(tokens, logits_to_keep=chosen).logits, expected[:, chosen]) <= TOLERANCE


def test_custom_4d_mask_equals_stock() -> None:
    stock, ours = build_pair()
    tokens = draw_tokens(2, 8)
    seen = torch.ones(8, 8).tril().bool()
    # Token 5 may not look at tokens 1 and 2.
    seen[5, 1:3] = False
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(2, 1, 8, 8)
    with torch.no_grad():
        expected = stock.eval()(tokens, attention_mask=mask).logits
        plain = stock(tokens).logits
        actual = ours.eval()(tokens, attention_mask=mask).logits
    assert relative_error(plain, expected) > 1e-3
    assert relative_error(actual, expected) <= TOLERANCE


def test_evaluation_loss_and_sum_over_given_items_equal_stock() -> None:
    stock, ours = build_pair()
    batch = make_batch("right")
    with torch.no_grad():
        for given in ({}, {"num_items_in_batch": torch.tensor(50)}):
            expected = stock.eval()(**batch, **given).loss
            assert relative_error(ours.eval()(**batch, **given).loss, expected) <= TOLERANCE


def test_shift_labels_equal_labels_shifted_here() -> None:
    _, ours = build_pair()
    batch = make_batch("right")
    labels = batch.pop("labels")
    shifted = torch.cat((labels[:, 1:], torch.full((len(labels), 1), -100)), dim=1)
    with torch.no_grad():
        expected = ours.eval()(**batch, labels=labels).loss
        assert torch.equal(ours(**batch, shift_labels=shifted).loss, expected)


def test_cu_seqlens_equal_packed_position_ids() -> None:
    stock, ours = build_pair()
    tokens = draw_tokens(1, 13)
    positions = torch.cat((torch.arange(5), torch.arange(6), torch.arange(2)))[None]
    with torch.no_grad():
        expected = stock.eval()(tokens, position_ids=positions, use_cache=False).logits
        actual = ours.eval()(tokens, cu_seqlens=torch.tensor([0, 5, 11, 13], dtype=torch.int32)).logits
    assert relative_error(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_stock(dtype: torch.dtype) -> None:
    stock, ours = build_pair()
    tokens = draw_tokens(2, 12)
    with torch.no_grad():
        exact = stock.eval()(tokens).logits
        expected = relative_error(stock.to(dtype)(tokens).logits, exact)
        assert relative_error(ours.eval().to(dtype)(tokens).logits, exact) <= 2 * expected + 1e-4
