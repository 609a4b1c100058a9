"""The config: published files are read, bad values refused by name, and what is saved is what other engines need."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config

from seeklet.modeling import ConfigError, SeekletConfig, SeekletError, SeekletForCausalLM
from tests.modeling.nano import SIZES, build_ours

YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
# As deepseek-ai/DeepSeek-V3 publishes it, without the keys that name remote code.
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
# What differs in moonshotai/Moonlight-16B-A3B and in Kimi-K2's text model.
MOONLIGHT = {
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "topk_group": 1,
    "vocab_size": 163840,
}
KIMI_K2 = {
    "first_k_dense_replace": 1,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**YARN, "factor": 32.0, "beta_fast": 1.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def saved(config: SeekletConfig, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("published", [{}, MOONLIGHT, KIMI_K2], ids=["DeepSeek-V3", "Moonlight", "Kimi-K2"])
def test_published_config_is_read_and_written_back(tmp_path: Path, published: dict[str, Any]) -> None:
    """Every key that an engine reads comes out with the value that went in."""
    published = {**DEEPSEEK_V3, **published}
    config = SeekletConfig.from_pretrained(write(tmp_path, published))
    assert config.model_type == "seeklet" and config.architectures == ["SeekletForCausalLM"]
    out = saved(config, tmp_path)
    renamed = {"model_type": "deepseek_v3", "dtype": "bfloat16"}
    for key, value in {**published, **renamed}.items():
        if key not in ("torch_dtype", "rope_scaling"):
            assert out[key] == value, key
    scaling = published["rope_scaling"]
    if scaling is None:
        assert out["rope_scaling"] is None
    else:
        assert {key: out["rope_scaling"][key] for key in scaling} == scaling
    assert out["rope_parameters"]["rope_theta"] == published["rope_theta"]
    assert SeekletConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_published_config_means_to_us_what_it_means_to_transformers(tmp_path: Path) -> None:
    write(tmp_path, DEEPSEEK_V3)
    ours, theirs = SeekletConfig.from_pretrained(tmp_path), DeepseekV3Config.from_pretrained(tmp_path)
    assert ours.rope_parameters == theirs.rope_parameters
    for field in ("head_dim", "qk_head_dim", "num_key_value_heads", "num_mtp_layers", "num_local_experts"):
        assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"q_lora_rank": None, "n_group": None, "topk_group": None, "n_shared_experts": 0},
        {"scoring_func": "softmax", "norm_topk_prob": False, "rope_interleave": False},
        {"num_nextn_predict_layers": 2, "tie_word_embeddings": True, "attention_bias": True},
        {"mtp_loss_weight": 0.3, "balance_loss_weight": 0.0, "bias_update_speed": 0.0},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, "rope_theta": 500.0},
    ],
    ids=lambda overrides: " ".join(overrides) or "plain",
)
def test_json_round_trip_changes_nothing(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = SeekletConfig(**{**SIZES, **overrides})
    first = saved(config, tmp_path)
    loaded = SeekletConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    for field, value in overrides.items():
        if field not in ("rope_parameters", "rope_scaling", "rope_theta") and value is not None:
            assert getattr(loaded, field) == value
    assert saved(loaded, tmp_path) == first
    # transformers' own class reads it, and means the same rope by it; "type" is an old name of "rope_type".
    theirs: dict[str, Any] = {**(DeepseekV3Config.from_pretrained(tmp_path).rope_parameters or {})}
    ours: dict[str, Any] = {**(config.rope_parameters or {})}
    assert theirs.pop("type", None) in (None, theirs["rope_type"])
    ours.pop("type", None)
    assert theirs == ours


def test_saved_config_has_every_key_that_other_engines_need(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.config.auto_map = {"AutoConfig": "somewhere--configuration.Config"}
    model.save_pretrained(tmp_path)
    out = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    needed = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "num_key_value_heads": 3,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "hidden_act": "silu",
    }
    assert {key: out.get(key, "missing") for key in needed} == needed
    assert out["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    stale = {"auto_map", "quantization_config", "name_or_path", "_name_or_path", "head_dim", "qk_head_dim"}
    assert stale & out.keys() == set()


def test_saved_config_of_a_model_without_mtp_says_so(tmp_path: Path) -> None:
    """transformers takes a missing key for one module."""
    build_ours().save_pretrained(tmp_path)
    out = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert out["num_nextn_predict_layers"] == 0
    assert DeepseekV3Config.from_pretrained(tmp_path).num_mtp_layers == 0


def test_saving_leaves_the_model_in_memory_as_it_was(tmp_path: Path) -> None:
    model = build_ours()
    before = (model.config.model_type, model.config.head_dim, model.config.qk_head_dim)
    model.save_pretrained(tmp_path)
    assert (model.config.model_type, model.config.head_dim, model.config.qk_head_dim) == before
    assert model.config.model_type == "seeklet"


def test_null_fields_mean_none_of_it() -> None:
    config = SeekletConfig(**{**SIZES, "n_group": None, "topk_group": None, "n_shared_experts": None})
    assert (config.n_group, config.topk_group, config.n_shared_experts) == (1, 1, 0)
    config = SeekletConfig(**{**SIZES, "topk_group": None, "num_key_value_heads": None})
    assert (config.topk_group, config.num_key_value_heads) == (4, 3)
    assert SeekletConfig(**{**SIZES, "num_nextn_predict_layers": None}).num_nextn_predict_layers == 0


def test_transformers_names_reach_the_published_fields() -> None:
    sizes = {k: v for k, v in SIZES.items() if k not in ("n_routed_experts", "num_nextn_predict_layers")}
    config: Any = SeekletConfig(**{**sizes, "num_local_experts": 16, "num_mtp_layers": 2})
    assert (config.n_routed_experts, config.num_nextn_predict_layers) == (16, 2)
    config.num_local_experts = 8
    assert config.n_routed_experts == 8


NAN, INFINITE = float("nan"), float("inf")
REFUSED = [
    ("scoring_func", "relu", "'sigmoid' or 'softmax'"),
    ("topk_method", "group_limited_greedy", "'noaux_tc'"),
    ("topk_method", "greedy", "'noaux_tc'"),
    ("moe_layer_freq", 2, "1"),
    ("hidden_act", "gelu", "'silu'"),
    ("vocab_size", 0, ">= 1"),
    ("hidden_size", -8, ">= 1"),
    ("hidden_size", 40.0, "an integer"),
    ("hidden_size", "40", "an integer"),
    ("hidden_size", None, "an integer"),
    ("num_hidden_layers", True, "an integer"),
    ("num_hidden_layers", 0, ">= 1"),
    ("n_routed_experts", 0, ">= 1"),
    ("n_shared_experts", -1, ">= 0"),
    ("num_experts_per_tok", 0, ">= 1"),
    ("first_k_dense_replace", -1, ">= 0"),
    ("num_nextn_predict_layers", -1, ">= 0"),
    ("q_lora_rank", 0, ">= 1"),
    ("kv_lora_rank", None, "an integer"),
    ("v_head_dim", 0, ">= 1"),
    ("rms_norm_eps", -1e-6, "a finite number >= 0"),
    ("rms_norm_eps", NAN, "a finite number >= 0"),
    ("routed_scaling_factor", INFINITE, "a finite number >= 0"),
    ("routed_scaling_factor", "2.5", "a finite number >= 0"),
    ("initializer_range", -0.1, "a finite number >= 0"),
    ("mtp_loss_weight", -0.1, "a finite number >= 0"),
    ("balance_loss_weight", None, "a finite number >= 0"),
    ("bias_update_speed", -1e-3, "a finite number >= 0"),
    ("attention_dropout", 1.0, "[0, 1)"),
    ("norm_topk_prob", "yes", "true or false"),
    ("rope_interleave", 1, "true or false"),
    ("attention_bias", None, "true or false"),
    ("tie_word_embeddings", "false", "true or false"),
    ("qk_rope_head_dim", 7, "an even number"),
    ("num_key_value_heads", 1, "num_attention_heads (3)"),
    ("n_group", 3, "a divisor of n_routed_experts (8)"),
    ("n_group", 0, ">= 1"),
    ("topk_group", 5, "at most n_group (4)"),
    ("num_experts_per_tok", 5, "at most 4, the experts in topk_group (2) groups"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), REFUSED, ids=[f"{f}={v!r}" for f, v, _ in REFUSED])
def test_bad_value_is_refused_naming_field_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SeekletConfig(**{**SIZES, field: value})
    message = str(caught.value)
    assert "\n" not in message
    assert f"config field {field} is {value!r}; allowed: " in message and allowed in message.split("allowed: ")[1]
    assert isinstance(caught.value, SeekletError) and isinstance(caught.value, ValueError)


ROPE_REFUSED = [
    ("rope_type", {"rope_type": "spiral", "rope_theta": 1e4}, "'yarn'"),
    ("rope_theta", {"rope_type": "default", "rope_theta": 0}, "a number > 0"),
    ("rope_theta", {"rope_type": "default", "rope_theta": "big"}, "a number > 0"),
    ("rope_theta", {"rope_type": "default", "rope_theta": NAN}, "a number > 0"),
    ("factor", {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.5}, "a number >= 1"),
    ("factor", {"rope_type": "yarn", "rope_theta": 1e4, "factor": "40"}, "a number >= 1"),
    ("factor", {"rope_type": "yarn", "rope_theta": 1e4, "factor": NAN}, "a number >= 1"),
    ("factor", {"rope_type": "yarn", "rope_theta": 1e4, "mscale_all_dim": 1.0}, "a number >= 1"),
    ("factor", {"rope_type": "linear", "rope_theta": 1e4}, "a number >= 1"),
    ("low_freq_factor", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}, "a number >= 1"),
]


@pytest.mark.parametrize(("field", "rope", "allowed"), ROPE_REFUSED, ids=[str(rope) for _, rope, _ in ROPE_REFUSED])
def test_bad_rope_is_refused_naming_field_value_and_what_is_allowed(
    field: str, rope: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SeekletConfig(**{**SIZES, "rope_parameters": rope})
    message = str(caught.value)
    assert f"config field rope_parameters.{field} is {rope.get(field)!r}; allowed: " in message
    assert allowed in message.split("allowed: ")[1]


def test_bad_value_set_later_is_refused_when_a_model_is_made() -> None:
    config = SeekletConfig(**SIZES)
    config.topk_group = 9
    with pytest.raises(ConfigError, match="config field topk_group is 9; allowed: at most n_group"):
        SeekletForCausalLM(config)


def test_bad_value_in_a_file_is_refused_at_load(tmp_path: Path) -> None:
    write(tmp_path, {**DEEPSEEK_V3, "topk_method": "greedy"})
    with pytest.raises(ConfigError, match="config field topk_method is 'greedy'; allowed: 'noaux_tc'"):
        SeekletConfig.from_pretrained(tmp_path)
