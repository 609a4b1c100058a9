"""What an adapter trains, what the table says of it, and what is refused."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.errors import RecipeError
from seeklet.finetune.lora.attach import Adapted, adapted, adapted_table, attach
from tests.finetune.lora.adapters import ALL, RANK, attached, build, loss_and_gradients, settings, tokens
from tests.modeling.nano import SIZES

H, Q, L, R = (SIZES[name] for name in ("hidden_size", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"))
HEADS, N, V = (SIZES[name] for name in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
DENSE, WIDTH, E = (SIZES[name] for name in ("intermediate_size", "moe_intermediate_size", "n_routed_experts"))
# Inputs plus outputs of a layer's matrices: what one rank costs.
ATTENTION = (H + Q) + (Q + HEADS * (N + R)) + (H + L + R) + (L + HEADS * (N + V)) + (HEADS * V + H)
SHARED, ROUTED, ROUTER = 3 * (H + WIDTH), E * ((H + 2 * WIDTH) + (WIDTH + H)), H + E


def llama(**overrides: Any) -> Any:
    """Return a nano Llama."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads, **overrides))


def test_the_table_counts_matrices_and_parameters_by_kind() -> None:
    rows = {row.kind: row for row in adapted(attach(build(), settings(*ALL)))}
    # Two MoE layers behind a dense one, and an MTP module that is a MoE layer and has a projection of two inputs.
    assert rows == {
        "attention": Adapted("attention", 15, RANK, RANK * 3 * ATTENTION),
        "dense_mlp": Adapted("dense_mlp", 3, RANK, RANK * 3 * (H + DENSE)),
        "shared_experts": Adapted("shared_experts", 6, RANK, RANK * 2 * SHARED),
        "routed_experts": Adapted("routed_experts", 2 * 2 * E, RANK, RANK * 2 * ROUTED),
        "router": Adapted("router", 2, RANK, RANK * 2 * ROUTER),
        "mtp": Adapted("mtp", 1 + 5 + 3 + 2 * E, RANK, RANK * (3 * H + ATTENTION + SHARED + ROUTED)),
    }


def test_the_table_of_another_model_and_of_what_is_saved_whole() -> None:
    model = attach(llama(), settings("attention", "lm_head", modules_to_save=("embed_tokens",)))
    assert adapted(model) == [
        Adapted("saved whole", 1, None, 64 * 16),
        Adapted("attention", 8, RANK, RANK * 2 * ((16 + 16) + 2 * (16 + 8) + (16 + 16))),
        Adapted("other", 1, RANK, RANK * (16 + 64)),
    ]


def test_the_table_is_printed() -> None:
    model = attach(build(), settings("routed_experts", "router"))
    console = Console(file=io.StringIO(), width=100)
    console.print(adapted_table(model))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    trained = RANK * 2 * (ROUTED + ROUTER)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"Adapter: {trained:,} trained parameters, {trained / total:.2%} of all" in text
    assert f"│ routed_experts │       32 │    3 │{RANK * 2 * ROUTED:>19,} │" in text


@pytest.mark.parametrize("kinds", [("attention",), ("routed_experts",), ("router", "mtp"), ALL])
def test_the_adapter_is_trained_and_nothing_else(kinds: tuple[str, ...]) -> None:
    model = attach(build(), settings(*kinds))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * sum(1 for name in trained if ".lora_A." in name) > 0
    assert set(loss_and_gradients(model, tokens())[1]) == trained


def test_a_new_adapter_changes_nothing_and_then_learns() -> None:
    model = build(num_nextn_predict_layers=0).eval()
    before = model(tokens()).logits
    adapted_model = attach(model, settings(*ALL[:-1]))
    torch.testing.assert_close(adapted_model(tokens()).logits, before, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.Adam([p for p in adapted_model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        losses.append(loss_and_gradients(adapted_model, tokens())[0].item())
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_scaling(alpha: float, rslora: bool) -> None:
    model = attach(build(), settings("attention", "routed_experts", "router", alpha=alpha, rslora=rslora, rank=4))
    modules: Any = model.modules()
    scalings = {module.scaling["default"] for module in modules if hasattr(module, "lora_A")}
    assert scalings == {alpha / 2 if rslora else alpha / 4}


def test_gaussian_factors_have_a_deviation_of_one_by_rank() -> None:
    model = attach(build(), settings("routed_experts", init="gaussian", rank=8))
    drawn = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if ".lora_A." in name])
    assert abs(drawn.std().item() * 8 - 1) < 0.05
    assert all((p == 0).all() for name, p in model.named_parameters() if ".lora_B." in name)


def test_a_model_on_the_meta_device_takes_an_adapter() -> None:
    """For counting parameters before anything is loaded."""
    with torch.device("meta"):
        model = build()
    rows = adapted(attach(model, settings(*ALL)))
    assert rows == adapted(attach(build(), settings(*ALL)))


def test_a_further_adapter_is_added_and_a_name_taken_once() -> None:
    model = attach(build(), settings("attention", "routed_experts"))
    attach(model, settings("attention", "routed_experts", rank=5), "second")
    assert model.active_adapters == ["default"] and set(model.peft_config) == {"default", "second"}
    assert [row.rank for row in adapted(model, "second")] == [5, 5]
    with pytest.raises(RecipeError, match="an adapter called 'second' is there"):
        attach(model, settings("attention"), "second")


def test_dropout_of_parameters_is_for_our_models() -> None:
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_experts": 4,
        "moe_intermediate_size": 8,
    }
    config = Qwen3MoeConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RecipeError, match=r"adapter.dropout is 0.1 for the parameters .*; allowed: 0, since PEFT"):
        attach(model, settings("mlp.experts.down_proj", dropout=0.1))
    assert len(adapted(attach(model, settings("mlp.experts.down_proj")))) == 1


@pytest.mark.parametrize("targets", [(), "attention", ("router", "router")])
def test_settings_without_sense_are_refused(targets: Any) -> None:
    with pytest.raises(RecipeError, match=r"adapter.targets is .*; allowed: a list of at least one name"):
        AdapterSettings(targets=targets)


def test_another_experts_implementation_is_refused_when_it_runs() -> None:
    model = attached(build(), "routed_experts")
    model.get_base_model().set_experts_implementation("grouped_mm")
    with pytest.raises(ValueError, match=r"set_experts_implementation\(\"eager\"\); it is 'grouped_mm'"):
        model(tokens())
    with model.disable_adapter():
        model(tokens())
