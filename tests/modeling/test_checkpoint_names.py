"""Names on disk and in memory, both ways, and how many MTP modules a list of names holds."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.checkpoint import memory_name, published_names
from seeklet.modeling.checkpoint_names import Slot, is_fp8_weight, mtp_copies, slots, true_mtp_depth
from tests.modeling.nano import SIZES, build_ours

EXPERTS = "model.layers.1.mlp.experts"


def test_every_slot_of_the_experts_is_where_the_published_tensor_goes() -> None:
    assert slots(f"{EXPERTS}.gate_up_proj", (2, 6, 5)) == [
        Slot(f"{EXPERTS}.0.gate_proj.weight", f"{EXPERTS}.gate_up_proj", (3, 5), (0, slice(0, 3))),
        Slot(f"{EXPERTS}.0.up_proj.weight", f"{EXPERTS}.gate_up_proj", (3, 5), (0, slice(3, 6))),
        Slot(f"{EXPERTS}.1.gate_proj.weight", f"{EXPERTS}.gate_up_proj", (3, 5), (1, slice(0, 3))),
        Slot(f"{EXPERTS}.1.up_proj.weight", f"{EXPERTS}.gate_up_proj", (3, 5), (1, slice(3, 6))),
    ]
    assert slots(f"{EXPERTS}.down_proj", (2, 5, 3)) == [
        Slot(f"{EXPERTS}.0.down_proj.weight", f"{EXPERTS}.down_proj", (5, 3), (0,)),
        Slot(f"{EXPERTS}.1.down_proj.weight", f"{EXPERTS}.down_proj", (5, 3), (1,)),
    ]
    assert slots(f"{EXPERTS}.gate_up_proj_scale_inv", (1, 2, 4, 3)) == [
        Slot(f"{EXPERTS}.0.gate_proj.weight_scale_inv", f"{EXPERTS}.gate_up_proj_scale_inv", (4, 3), (0, 0)),
        Slot(f"{EXPERTS}.0.up_proj.weight_scale_inv", f"{EXPERTS}.gate_up_proj_scale_inv", (4, 3), (0, 1)),
    ]


def test_names_convert_both_ways() -> None:
    with torch.device("meta"):
        keys = build_ours(num_nextn_predict_layers=2).state_dict()
    experts = SIZES["n_routed_experts"]
    for key in keys:
        names = published_names(key, experts)
        assert len(names) == {"gate_up_proj": 2 * experts, "down_proj": experts}.get(key.rsplit(".")[-1], 1)
        assert {memory_name(name) for name in names} == {key}
    assert memory_name("model.layers.3.embed_tokens.weight") is None
    assert memory_name("model.layers.3.shared_head.head.weight") is None
    assert memory_name("model.embed_tokens.weight") == "model.embed_tokens.weight"
    with pytest.raises(ValueError, match="num_experts"):
        published_names(f"{EXPERTS}.gate_up_proj")


def test_published_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    stock = DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES))
    stock.save_pretrained(tmp_path)
    with torch.device("meta"):
        keys = SeekletForCausalLM(SeekletConfig(**SIZES)).state_dict()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = set(file.keys())
    assert {name for key in keys for name in published_names(key, SIZES["n_routed_experts"])} == written


def test_copies_of_embedding_and_head() -> None:
    layers = ["model.layers.2.enorm.weight", "model.layers.3.hnorm.weight", "model.layers.1.input_layernorm.weight"]
    main = ["model.embed_tokens.weight", "lm_head.weight"]
    assert mtp_copies([*layers, *main], 2) == {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
        "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight": "lm_head.weight",
    }
    tied = mtp_copies([layers[0], main[0]], 2, tied=True)
    assert tied["model.layers.2.shared_head.head.weight"] == "model.embed_tokens.weight"
    without_head = mtp_copies(["layers.2.enorm.weight", "embed_tokens.weight"], 2)
    assert without_head == {"layers.2.embed_tokens.weight": "embed_tokens.weight"}


@pytest.mark.parametrize(
    ("behind", "configured", "expected"),
    [
        ([], 1, 0),
        (["61.enorm"], 1, 1),
        (["61.enorm"], 0, 1),
        (["61.enorm", "62.eh_proj"], 1, 2),
        (["61.enorm"], 2, 2),
        (["61.self_attn.o_proj"], 1, 1),
        (["61.self_attn.o_proj"], 0, 0),
        (["61.embed_tokens"], 0, 1),
        (["61.shared_head.head"], 0, 1),
    ],
)
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_true_mtp_depth(prefix: str, behind: list[str], configured: int, expected: int) -> None:
    names = [f"{prefix}layers.{name}.weight" for name in ["0.self_attn.o_proj", "60.mlp.gate", *behind]]
    assert true_mtp_depth([*names, "lm_head.weight"], 61, configured) == expected


def test_what_deepseek_publishes_in_fp8() -> None:
    fp8 = [
        "self_attn.q_a_proj",
        "self_attn.q_b_proj",
        "self_attn.q_proj",
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.kv_b_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "mlp.experts.12.gate_proj",
        "mlp.experts.0.down_proj",
        "mlp.shared_experts.up_proj",
    ]
    other = ["mlp.gate", "input_layernorm", "self_attn.q_a_layernorm", "eh_proj", "shared_head.head", "embed_tokens"]
    assert all(is_fp8_weight(f"model.layers.3.{name}.weight") for name in fp8)
    assert not any(is_fp8_weight(f"model.layers.3.{name}.weight") for name in other)
    assert not is_fp8_weight("lm_head.weight")
    assert not is_fp8_weight("model.layers.3.self_attn.o_proj.bias")
