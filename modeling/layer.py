"""Decoder layer: attention, then a dense or a mixture-of-experts feed-forward, each with pre-norm and residual."""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import SeekletAttention
from .configuration import SeekletConfig
from .moe import SeekletMLP, SeekletMoE
from .norm import SeekletAddRMSNorm, SeekletRMSNorm


class SeekletDecoderLayer(GradientCheckpointingLayer):
    """Layer `layer_idx`: dense below `first_k_dense_replace`, mixture of experts from there on."""

    def __init__(self, config: SeekletConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SeekletAttention(config, layer_idx)
        self.is_moe = layer_idx >= config.first_k_dense_replace
        self.mlp = SeekletMoE(config) if self.is_moe else SeekletMLP(config, config.intermediate_size)
        self.input_layernorm = SeekletRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = SeekletAddRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        token_mask: torch.Tensor | None = None,
        count_load: bool = False,
        expert_choice: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the hidden states (B, S, H) after this layer; `token_mask` and what follows as in `SeekletMoE`."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        normed, hidden_states = self.post_attention_layernorm(attended, hidden_states)
        fed = self.mlp(normed, token_mask, count_load, expert_choice) if self.is_moe else self.mlp(normed)
        return hidden_states + fed
