"""Nano DeepSeek-V3 models, ours and transformers', holding the same weights."""

from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

from seeklet.modeling import SeekletConfig, SeekletForCausalLM

PAD = 0
# Every size is another number, so that no transposition goes unnoticed. One dense and two MoE layers.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 28,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_nextn_predict_layers": 0,
}


def build_ours(model_class: Any = SeekletForCausalLM, seed: int = 0, **overrides: Any) -> Any:
    """Return a nano model of ours in training mode, its norms, router biases and linear biases not trivial."""
    attention = overrides.pop("attn_implementation", "sdpa")
    labels = {"num_labels": overrides.pop("num_labels")} if "num_labels" in overrides else {}
    config = SeekletConfig(**SIZES | overrides, **labels)
    torch.manual_seed(seed)
    model = model_class._from_config(config, attn_implementation=attention)
    scramble(model)
    return model.train()


def build_pair(
    stock_class: Any = DeepseekV3ForCausalLM, model_class: Any = SeekletForCausalLM, seed: int = 0, **overrides: Any
) -> tuple[Any, Any]:
    """Return (stock, ours) in training mode with the same weights; no loss beside the language model's."""
    sizes: dict[str, Any] = {**SIZES, "balance_loss_weight": 0.0, **overrides}
    attention = sizes.pop("attn_implementation", "sdpa")
    num_labels = {"num_labels": sizes.pop("num_labels")} if "num_labels" in sizes else {}
    ours_only = ("scoring_func", "balance_loss_weight", "mtp_loss_weight", "bias_update_speed")
    stock_sizes = {name: value for name, value in sizes.items() if name not in ours_only}
    torch.manual_seed(seed)
    stock = stock_class._from_config(DeepseekV3Config(**stock_sizes, **num_labels), attn_implementation=attention)
    scramble(stock)
    ours = model_class._from_config(SeekletConfig(**sizes, **num_labels), attn_implementation=attention)
    ours.load_state_dict(stock.state_dict())
    return stock.train(), ours.train()


@torch.no_grad()
def scramble(model: PreTrainedModel) -> None:
    """Move what starts at zero or one, so that a term left out shows."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or "layernorm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith(".bias"):
            parameter.normal_(0, 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.1)


def draw_tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Return token ids (batch, length) without any special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch, length), generator=generator)


def padding_mask(lengths: tuple[int, ...], width: int, side: str) -> torch.Tensor:
    """Return an attention mask (rows, width) of rows of these lengths, padded on the "left" or the "right"."""
    positions = torch.arange(width)
    rows = [positions >= width - n if side == "left" else positions < n for n in lengths]
    return torch.stack(rows).long()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of `expected`, 0 where both are all zeros."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double()).item()
    norm = torch.linalg.vector_norm(expected.double()).item()
    return difference if norm == 0 else difference / norm


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> gradient of every parameter, zeros where none arrived."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def assert_same_gradients(actual: torch.nn.Module, expected: torch.nn.Module, tolerance: float) -> None:
    """Assert that every parameter's gradient agrees to `tolerance`, relative to the norm of that gradient."""
    ours, theirs = gradients(actual), gradients(expected)
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}
