"""Rotary embedding: position to cos and sin, and the hooked layer that turns queries and keys by them."""

import math
from typing import Any

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration import SeekletConfig
from .fp32_buffers import Fp32Buffers
from .kernels.rope.reference import apply_rope, apply_rope_interleaved


class SeekletRotaryEmbedding(Fp32Buffers):
    """Cosine and sine of every position, through transformers' rope functions (plain, linear, YaRN, llama3, ...)."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: SeekletConfig):
        super().__init__()
        self.config = config
        # The names that transformers' `dynamic_rope_update` reads and writes.
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        init = self.compute_default_rope_parameters
        if self.rope_type != "default":
            init = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: SeekletConfig, **_: Any) -> tuple[torch.Tensor, float]:
        """Return theta^(-2i/R) for i in [0, R/2), fp32, and the attention scaling 1.0 of plain rope."""
        steps = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float) / config.qk_rope_head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** steps), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin (B, S, R) of `position_ids` (B, S), in the dtype and on the device of `x`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        scaling = self.attention_scaling
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


@use_kernel_forward_from_hub("SeekletApplyRope")
class SeekletApplyRope(nn.Module):
    """Rotates the rope part of queries and of the shared key; pairs interleaved or not, as the weights hold them."""

    def __init__(self, interleaved: bool):
        super().__init__()
        self.interleaved = interleaved

    def forward(
        self, q_rope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `q_rope` (B, H, S, R) and `k_rope` (B, 1, S, R) rotated by `cos`, `sin` (B or 1, S, R)."""
        rotate = apply_rope_interleaved if self.interleaved else apply_rope
        return rotate(q_rope, cos, sin), rotate(k_rope, cos, sin)


def softmax_scaling(config: SeekletConfig) -> float:
    """Return the factor on q.k: 1/sqrt(head size), times YaRN's mscale squared (published modeling code)."""
    rope = config.rope_parameters
    scaling = config.qk_head_dim**-0.5
    mscale_all_dim = rope.get("mscale_all_dim", 0)
    if rope["rope_type"] != "default" and mscale_all_dim and rope["factor"] > 1:
        scaling *= (0.1 * mscale_all_dim * math.log(rope["factor"]) + 1.0) ** 2
    return scaling
