"""Which modules plain names stand for: in seeklet's models, in others, and what is said where there are none."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, GPT2Config, LlamaConfig, OPTConfig, Qwen3MoeConfig

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.lora.targets import adaptable, find_targets, shortened
from tests.finetune.lora.adapters import ALL, build
from tests.modeling.nano import SIZES

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = ("gate_up_proj", "down_proj")


def expected(kind: str) -> set[str]:
    """Return what one plain name means in the nano model: layer 0 dense, 1 and 2 MoE, 3 the MTP module."""
    main = [f"model.layers.{layer}" for layer in range(3)]
    moe = [f"{layer}.mlp" for layer in main[1:]]
    return {
        "attention": {f"{layer}.self_attn.{name}" for layer in main for name in ATTENTION},
        "dense_mlp": {f"model.layers.0.mlp.{name}" for name in MLP},
        "shared_experts": {f"{layer}.shared_experts.{name}" for layer in moe for name in MLP},
        "routed_experts": {f"{layer}.experts.{name}" for layer in moe for name in FUSED},
        "router": {f"{layer}.gate.weight" for layer in moe},
        "mtp": {"model.layers.3.eh_proj"}
        | {f"model.layers.3.self_attn.{name}" for name in ATTENTION}
        | {f"model.layers.3.mlp.shared_experts.{name}" for name in MLP}
        | {f"model.layers.3.mlp.experts.{name}" for name in FUSED},
    }[kind]


def meant(model: nn.Module, *names: str) -> set[str]:
    """Return all modules and parameters that PEFT will match by what `find_targets` returns."""
    targets = find_targets(model, names)
    found = set()
    for ends, named in ((targets.modules, model.named_modules()), (targets.parameters, model.named_parameters())):
        found |= {key for key, _ in named if any(key == end or key.endswith(f".{end}") for end in ends)}
    return found


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in ALL], ALL, ("attention", "routed_experts"), ("mtp", "router")])
def test_plain_names_in_any_combination(kinds: tuple[str, ...]) -> None:
    assert meant(build(), *kinds) == set().union(*map(expected, kinds))


def test_mtp_is_only_there_where_it_is() -> None:
    assert "mtp" not in adaptable(build(num_nextn_predict_layers=0))
    assert meant(build(num_nextn_predict_layers=0), "attention", "router") == expected("attention") | expected("router")


def test_without_query_latent_and_biases() -> None:
    model = build(q_lora_rank=None, attention_bias=True)
    names = {key for key in meant(model, "attention") if key.startswith("model.layers.1.")}
    assert names == {f"model.layers.1.self_attn.{name}" for name in ("q_proj", *ATTENTION[2:])}


def test_modules_by_peft_names_beside_plain_ones() -> None:
    assert meant(build(), "router", "o_proj", "lm_head") == {
        *expected("router"),
        *(f"model.layers.{layer}.self_attn.o_proj" for layer in range(4)),
        "lm_head",
    }
    assert meant(build(), "1.self_attn.o_proj") == {"model.layers.1.self_attn.o_proj"}
    assert meant(build(), "embed_tokens") == {"model.embed_tokens"}


def test_names_are_as_short_as_can_be() -> None:
    targets = find_targets(build(), ALL)
    assert targets.modules == sorted({"eh_proj", *ATTENTION, *MLP})
    # Not "gate.weight": the MTP module's router is not asked for.
    assert targets.parameters == ["1.mlp.gate.weight", "2.mlp.gate.weight", "down_proj", "gate_up_proj"]
    assert shortened(["a.x", "b.x"], ["a.x", "b.x", "c.y"]) == ["x"]
    assert shortened(["a.x"], ["a.x", "b.x"]) == ["a.x"]


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA = LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=1)
GPT2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)
OPT = OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16)
QWEN_MOE = Qwen3MoeConfig(
    **SMALL,
    intermediate_size=24,
    num_key_value_heads=1,
    moe_intermediate_size=8,
    num_experts=4,
    num_experts_per_tok=2,
    mlp_only_layers=[0],
)
STOCK = DeepseekV3Config(**SIZES)
QKVO = [f"self_attn.{name}_proj" for name in "qkvo"]
OTHERS = {
    "llama": (LLAMA, "model.layers", {"attention": QKVO, "dense_mlp": [f"mlp.{name}" for name in MLP]}),
    "gpt2": (
        GPT2,
        "transformer.h",
        {"attention": ["attn.c_attn", "attn.c_proj"], "dense_mlp": ["mlp.c_fc", "mlp.c_proj"]},
    ),
    "opt": (
        OPT,
        "model.decoder.layers",
        {"attention": [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")], "dense_mlp": ["fc1", "fc2"]},
    ),
    "qwen3_moe": (QWEN_MOE, "model.layers", {"attention": QKVO}),
    "deepseek_v3": (STOCK, "model.layers", {"attention": [f"self_attn.{name}" for name in ATTENTION]}),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_models_by_their_module_tree(architecture: str) -> None:
    config, layers, by_kind = OTHERS[architecture]
    with torch.device("meta"):
        # Stock's own class: AutoModelForCausalLM of seeklet takes deepseek_v3 for ours only by the config's class.
        model = AutoModelForCausalLM.from_config(config)
    for kind, names in by_kind.items():
        assert meant(model, kind) == {
            f"{layers}.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in names
        }


def test_a_dense_layer_among_moe_layers() -> None:
    """Layers that route have no dense MLP; the router and the shared experts of another model are not touched."""
    for config in (QWEN_MOE, STOCK):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert meant(model, "dense_mlp") == {f"model.layers.0.mlp.{name}" for name in MLP}


def test_parameters_of_other_models_by_their_names() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(QWEN_MOE)
    assert meant(model, "mlp.experts.down_proj") == {"model.layers.1.mlp.experts.down_proj"}


@pytest.mark.parametrize(
    ("config", "name", "there"),
    [
        (LLAMA, "routed_experts", "attention, dense_mlp, down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"),
        (LLAMA, "query_proj", "attention, dense_mlp, down_proj"),
        # A module, but nothing LoRA could adapt.
        (LLAMA, "self_attn", "attention, dense_mlp, down_proj"),
        (GPT2, "router", "attention, dense_mlp, c_attn, c_fc, c_proj, lm_head"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_what_there_is(config: Any, name: str, there: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RecipeError) as error:
        find_targets(model, ["attention", name])
    assert str(error.value).startswith(
        f"adapter.targets: {name!r} matches nothing in {type(model).__name__}; there are: "
    )
    assert there in str(error.value)


def test_mtp_of_a_model_without_it_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="'mtp' matches nothing in SeekletForCausalLM; there are: attention, dense_mlp"
    ):
        find_targets(build(num_nextn_predict_layers=0), ["attention", "mtp"])
