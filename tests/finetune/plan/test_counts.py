"""Parameter counts against the published shapes, written out by hand here and counted on the meta device there."""

import json
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.plan.counts import cache_numbers, count_flops, count_parameters
from seeklet.finetune.plan.model_config import CONFIGS, published_config, published_names


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def deepseek_by_hand(c: dict[str, Any]) -> tuple[int, int]:
    hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    queries = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    rank = c["q_lora_rank"]
    attention = hidden * queries if rank is None else hidden * rank + rank + rank * queries
    attention += hidden * (latent + c["qk_rope_head_dim"]) + latent
    attention += latent * heads * (c["qk_nope_head_dim"] + c["v_head_dim"]) + heads * c["v_head_dim"] * hidden
    expert, dense = 3 * hidden * c["moe_intermediate_size"], c["first_k_dense_replace"]
    both = c["num_hidden_layers"] * (attention + 2 * hidden) + dense * 3 * hidden * c["intermediate_size"]
    both += 2 * c["vocab_size"] * hidden + hidden
    sparse = c["num_hidden_layers"] - dense
    both += sparse * (c["n_shared_experts"] * expert + c["n_routed_experts"] * hidden)
    return (
        both + sparse * c["n_routed_experts"] * expert,
        both + sparse * c["num_experts_per_tok"] * expert,
    )


def llama_by_hand(c: dict[str, Any]) -> int:
    hidden, head = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * c["num_key_value_heads"] * head
    layer = attention + 3 * hidden * c["intermediate_size"] + 2 * hidden
    return c["num_hidden_layers"] * layer + 2 * c["vocab_size"] * hidden + hidden


@pytest.mark.parametrize(
    ("name", "total", "active", "named"),
    [
        # The Hub counts 671,026,419,200 with the routers' 58 x 256 biases, which are no parameters here.
        ("deepseek-v3", 671_026_404_352, 37_552_282_624, (671, 37)),
        ("moonlight-16b-a3b", 15_960_108_544, 2_914_774_528, (16, 3)),
        ("kimi-k2", 1_026_408_209_408, 32_861_477_888, (1026, 32)),
    ],
)
def test_mixtures_have_the_published_counts(meta_model, name, total, active, named):
    counts = count_parameters(meta_model(name))
    assert (counts.total, counts.active) == (total, active) == deepseek_by_hand(read(name))
    assert (round(counts.total / 1e9), int(counts.active / 1e9 + 0.1)) == named
    assert sum(counts.by_part.values()) == counts.total + counts.mtp


def test_llama_405b_has_the_published_count(meta_model):
    counts = count_parameters(meta_model("llama-3.1-405b"))
    assert counts.total == counts.active == 405_853_388_800 == llama_by_hand(read("llama-3.1-405b"))
    assert counts.routed == counts.mtp == 0


def test_mtp_is_one_more_layer_with_a_merge(meta_model):
    """V3's module: a layer of experts, enorm, hnorm, eh_proj and the norm before the head."""
    counts, hidden = count_parameters(meta_model("deepseek-v3")), 7168
    layer = 256 * 3 * hidden * 2048 + 3 * hidden * 2048 + 256 * hidden + 2 * hidden
    attention = counts.by_part["attention"] // 61 + 1536 + 512
    assert counts.mtp == layer + attention + 2 * hidden * hidden + 3 * hidden


def test_a_token_of_v3_costs_250_gflop(meta_model):
    """As "Insights into DeepSeek-V3" has it, table 4: 385 TFLOP/s at 272.8 billion tokens a day on 2,048 GPUs."""
    flops = count_flops(meta_model("deepseek-v3"), 4096, with_mtp=False)
    published = 385e12 * 2048 * 86400 / 272.80e9
    assert 3 * flops.forward == pytest.approx(published, rel=0.02)
    assert flops.attention == 2 * 61 * 128 * (192 + 128) * 2048


def test_cache_of_v3_is_its_latent():
    assert cache_numbers(published_config("deepseek-v3")) == 61 * (512 + 64)
    assert cache_numbers(published_config("llama-3.1-405b")) == 126 * 2 * 8 * 128


def test_unknown_model_names_the_known():
    assert "deepseek-ai/DeepSeek-R1" in published_names()
    with pytest.raises(RecipeError, match=r"model gpt is not kept here; allowed: Qwen/.*moonshotai/"):
        published_config("gpt")
