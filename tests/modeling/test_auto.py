"""The Auto classes load a deepseek_v3 checkpoint as ours, unregistered as transformers'; PEFT adapts as asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV3ForSequenceClassification,
    DeepseekV3ForTokenClassification,
    DeepseekV3Model,
    LlamaConfig,
)

import seeklet
from seeklet.modeling import (
    SeekletConfig,
    SeekletForCausalLM,
    SeekletForSequenceClassification,
    SeekletForTokenClassification,
    SeekletModel,
)
from seeklet.modeling.auto import is_registered
from tests.modeling.nano import build_ours, build_pair, draw_tokens, relative_error

AUTO = [
    (AutoModel, DeepseekV3Model, SeekletModel),
    (AutoModelForCausalLM, DeepseekV3ForCausalLM, SeekletForCausalLM),
    (AutoModelForSequenceClassification, DeepseekV3ForSequenceClassification, SeekletForSequenceClassification),
    (AutoModelForTokenClassification, DeepseekV3ForTokenClassification, SeekletForTokenClassification),
]
HEADS = pytest.mark.parametrize(("auto_class", "stock_class", "our_class"), AUTO, ids=[c.__name__ for _, _, c in AUTO])


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Unregister for the time of a test."""
    seeklet.unregister()
    yield
    seeklet.register()


def first_output(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return logits, or the hidden states of a bare model."""
    with torch.no_grad():
        return model.eval()(tokens, return_dict=False)[0]


@HEADS
def test_a_checkpoint_saved_by_transformers_loads_as_ours(
    tmp_path: Path, auto_class: Any, stock_class: Any, our_class: Any
) -> None:
    stock, _ = build_pair(stock_class, our_class)
    # transformers pads its config with a module that is not there.
    stock.config.num_mtp_layers = 1
    stock.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "deepseek_v3"
    ours = auto_class.from_pretrained(tmp_path)
    assert type(ours) is our_class and type(ours.config) is SeekletConfig
    tokens = draw_tokens(2, 7)
    assert relative_error(first_output(ours, tokens), first_output(stock, tokens)) <= 1e-5


@HEADS
def test_unregistered_the_same_checkpoint_loads_as_transformers_own(
    tmp_path: Path, unregistered: None, auto_class: Any, stock_class: Any, our_class: Any
) -> None:
    ours = build_ours(our_class)
    ours.save_pretrained(tmp_path)
    stock = auto_class.from_pretrained(tmp_path)
    assert type(stock) is stock_class and type(stock.config) is DeepseekV3Config
    tokens = draw_tokens(2, 7)
    assert relative_error(first_output(stock, tokens), first_output(ours, tokens)) <= 1e-5


def test_registering_and_unregistering_over_and_over() -> None:
    try:
        for _ in range(2):
            seeklet.register()
            seeklet.register()
            assert is_registered() and type(AutoConfig.for_model("deepseek_v3")) is SeekletConfig
            seeklet.unregister()
            seeklet.unregister()
            assert not is_registered() and type(AutoConfig.for_model("deepseek_v3")) is DeepseekV3Config
    finally:
        seeklet.register()


def test_unregistered_our_own_classes_still_save_and_load(tmp_path: Path, unregistered: None) -> None:
    ours = build_ours(num_nextn_predict_layers=1)
    ours.save_pretrained(tmp_path)
    again = SeekletForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


def test_other_models_are_untouched_by_registration() -> None:
    assert type(AutoConfig.for_model("llama")) is LlamaConfig
    assert type(AutoConfig.for_model("deepseek_v2")).__name__ == "DeepseekV2Config"


def test_kimi_k2_is_the_same_architecture_by_another_name(tmp_path: Path) -> None:
    ours = build_ours(n_group=1, topk_group=1)
    ours.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "model_type": "kimi_k2"}
    path.write_text(json.dumps(config), encoding="utf-8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SeekletForCausalLM
    tokens = draw_tokens(2, 7)
    assert torch.equal(first_output(loaded, tokens), first_output(ours, tokens))


def test_a_config_makes_our_model() -> None:
    assert type(AutoModelForCausalLM.from_config(build_ours().config)) is SeekletForCausalLM


def test_adapters_on_gate_up_and_down_go_where_they_are_asked_to() -> None:
    """On `deepseek_v3` PEFT sends them to the routed experts instead, dropping shared and dense feed-forwards."""
    adapted = get_peft_model(
        build_ours(), LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    found = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    parents = ("layers.0.mlp", "layers.1.mlp.shared_experts", "layers.2.mlp.shared_experts")
    projections = ("gate_proj", "up_proj", "down_proj")
    assert found == {f"base_model.model.model.{parent}.{name}" for parent in parents for name in projections}


def test_adapters_on_all_linear_layers_leave_router_and_head_alone() -> None:
    adapted = get_peft_model(build_ours(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    found = {name.split(".lora_A")[0].split(".")[-1] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert found == attention | {"gate_proj", "up_proj", "down_proj"}
