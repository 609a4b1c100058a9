"""The ways a model is run in practice: autocast, offloading, checkpointing of both kinds, odd masks and labels."""

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from seeklet.modeling import SeekletConfig, SeekletForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_nextn_predict_layers": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture
def model() -> SeekletForCausalLM:
    return SeekletForCausalLM(SeekletConfig(**SIZES)).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 97, (2, 40))


def test_training_under_autocast_keeps_the_router_in_fp32(model, tokens):
    model.train()
    plain = model(tokens, labels=tokens)
    mask = torch.ones_like(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(tokens, attention_mask=mask, labels=tokens, output_router_logits=True)
        mixed.loss.backward()
    assert mixed.router_logits[0].dtype == torch.float32
    assert abs(mixed.loss.item() - plain.loss.item()) < 0.01
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_generation_under_autocast_and_with_drafts(model, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        plain = model.generate(tokens, max_new_tokens=4, do_sample=False)
        drafted = model.generate(tokens, max_new_tokens=4, do_sample=False, use_mtp=True)
    assert plain.shape == drafted.shape == (2, 44)


def test_offloaded_weights_count_in_decode_and_loss(model, tokens):
    offloaded: Any = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    torch.testing.assert_close(offloaded(tokens, labels=tokens).loss, model(tokens, labels=tokens).loss)
    # The cached steps are absorbed, so the up-projection is read besides its layer's forward.
    plain = model.generate(tokens, max_new_tokens=20, do_sample=False)
    assert torch.equal(offloaded.generate(tokens, max_new_tokens=20, do_sample=False), plain)


def test_balance_loss_without_a_gradient_is_refused(model, tokens):
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        model(tokens, labels=tokens)
    model.config.balance_loss_weight = 0.0
    model(tokens, labels=tokens).loss.backward()
    assert model.model.layers[1].mlp.gate.weight.grad.abs().sum() > 0


def test_shifted_labels_train_the_same(model, tokens):
    model.train()
    plain = model(tokens, labels=tokens)
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    given = model(tokens, shift_labels=shifted)
    for name in ("loss", "lm_loss", "mtp_loss", "balance_loss"):
        torch.testing.assert_close(given[name], plain[name])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packing_by_a_4d_mask_equals_packing_by_positions(model, tokens, implementation):
    model.train().set_attn_implementation(implementation)
    row = tokens[:1]
    positions = torch.cat((torch.arange(15), torch.arange(25)))[None]
    by_positions = model(row, position_ids=positions, labels=row)
    sequence = torch.cat((torch.zeros(15), torch.ones(25)))
    mask = (sequence[:, None] == sequence[None]) & torch.ones(40, 40, dtype=torch.bool).tril()
    by_mask = model(row, position_ids=positions, attention_mask=mask[None, None], labels=row)
    for name in ("lm_loss", "mtp_loss", "balance_loss"):
        torch.testing.assert_close(by_mask[name], by_positions[name])


def test_passes_without_gradients_are_no_expert_load(model, tokens):
    model.train()
    with torch.no_grad():
        model(tokens)
    model(tokens)
    assert [int(load.sum()) for load in model.update_router_bias()] == [2 * 40 * 2, 2 * 40 * 2, 0]


@pytest.mark.parametrize("offsets", [(0, 3, 8), (1, 40), (0, 20, 10, 40)])
def test_offsets_that_do_not_fit_are_refused(model, tokens, offsets):
    with pytest.raises(ValueError, match=r"cu_seqlens is .*allowed: a single row, offsets rising from 0"):
        model(tokens[:1], cu_seqlens=torch.tensor(offsets))


def test_an_empty_packed_sequence_changes_nothing(model, tokens):
    row = tokens[:1]
    plain = model(row, cu_seqlens=torch.tensor([0, 15, 40])).logits
    torch.testing.assert_close(model(row, cu_seqlens=torch.tensor([0, 15, 15, 40, 40])).logits, plain)


def test_strided_embeddings_are_taken(model):
    embeds = torch.randn(9, 2, 64).transpose(0, 1)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(inputs_embeds=embeds.contiguous()).logits)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casting_leaves_the_rope_frequencies_alone(model, cast):
    before = model.model.rotary_emb.inv_freq.clone()
    getattr(model, cast)()
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_second_derivatives_are_refused_not_wrong(model, tokens):
    model.train()
    weight = model.model.layers[1].mlp.experts.down_proj
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(model(tokens, labels=tokens).loss, weight, create_graph=True)
