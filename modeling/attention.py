"""Multi-head latent attention (DeepSeek-V2, section 2.1): expanded for training and prefill, absorbed for decode."""

# B batch, S query tokens, T keys, H heads, N qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim, L kv_lora_rank

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import SeekletConfig
from .kernels.linear.reference import linear
from .kernels.mla_attention.reference import mla_attention
from .kernels.mla_decode.reference import decode_is_cheaper, mla_decode
from .linear import SeekletLinear, has_plain_weight
from .masks import causal_mask, dense_mask, packed_mask
from .norm import SeekletRMSNorm
from .rope import SeekletApplyRope, softmax_scaling


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (B, S, H, V) and the weights (B, H, S, T) of plain softmax attention, softmax in fp32."""
    scores = query @ key.mT * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@use_kernel_forward_from_hub("SeekletMLADecode")
class SeekletMLADecode(nn.Module):
    """Attention over the latent cache for few query tokens; the head is folded into the query rows."""

    def forward(
        self,
        q_latent: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        """Return the output (B, H, S, L); arguments as in the reference `mla_decode`, but no mask means causal."""
        if mask is None:
            mask = causal_mask(q_latent.shape[2], latent.shape[1], latent.device)
        return mla_decode(q_latent, q_rope, latent, k_rope, mask, scaling)[0]


@use_kernel_forward_from_hub("SeekletMLAAttention")
class SeekletMLAAttention(nn.Module):
    """Attention with expanded keys and values, keys wider than values (training, prefill)."""

    def forward(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        weight: torch.Tensor | None,
        expanded: torch.Tensor | None,
        mask: torch.Tensor | None,
        scaling: float,
        first_keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output (B, H, S, V).

        Args:
            q_nope: (B, H, S, N). q_rope: (B, H, S, R). latent: (B, T, L). k_rope: (B, T, R).
            weight: (H * (N + V), L), what makes keys and values of the latent; a kernel keeps neither for backward.
            expanded: (B, H, T, N + V), keys and values, given where `weight` is not.
            mask: as the reference `mla_attention` takes it.
            scaling: of the scores.
            first_keys: (B or 1, S), the first key that each query sees, in place of a mask (`packed_first_keys`).
        """
        heads, nope = q_nope.shape[1], q_nope.shape[-1]
        if expanded is None:
            assert weight is not None
            expanded = linear(latent, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
        query = torch.cat((q_nope, q_rope), dim=-1)
        key = torch.cat((expanded[..., :nope], k_rope.unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1)
        mask = mask if first_keys is None else packed_mask(first_keys)
        return mla_attention(query, key, expanded[..., nope:], mask, scaling)


def _has_kernel(layer: nn.Module) -> bool:
    """Return whether a kernel stands in the place of a layer's own forward, also beneath accelerate's."""
    forward = vars(layer).get("_old_forward" if hasattr(layer, "_hf_hook") else "forward")
    return isinstance(forward, MethodType) and forward.__func__ is not type(layer).forward


def _takes_reference(query: torch.Tensor, attention_mask: Any, dropout: float) -> bool:
    """Return whether the blocked reference is the better choice than PyTorch's fused attention: on CPU."""
    on_cpu = query.device.type == "cpu" and not torch.compiler.is_compiling()
    return (
        on_cpu
        and dropout == 0
        and (attention_mask is None or (attention_mask.dim() == 4 and attention_mask.shape[2] == query.shape[2]))
    )


def _is_bool_or_none(attention_mask: Any) -> bool:
    """Return whether a mask is one that kernels take: causal, or any bool mask."""
    if attention_mask is None:
        return True
    return isinstance(attention_mask, torch.Tensor) and attention_mask.dtype == torch.bool and attention_mask.dim() == 4


class SeekletAttention(nn.Module):
    """MLA with the latent cache: per token only the normed latent (L) and the rotated shared key (R) are kept.

    Which of the two formulations of the one formula runs is decided per call by the number of query and cached
    tokens (`decode_is_cheaper`), never by a flag.
    """

    def __init__(self, config: SeekletConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        # Read by transformers' attention functions.
        self.num_key_value_groups = 1
        self.is_causal = True
        self.attention_dropout = config.attention_dropout
        self.scaling = softmax_scaling(config)
        # Read at every call; reading them off the config takes 2 us each.
        self.kv_lora_rank = config.kv_lora_rank
        self.qk_nope_head_dim, self.qk_rope_head_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.has_query_latent = config.q_lora_rank is not None

        hidden, rank, bias = config.hidden_size, config.q_lora_rank, config.attention_bias
        queries = self.num_heads * config.qk_head_dim
        if rank is None:
            self.q_proj = SeekletLinear(hidden, queries, bias=False)
        else:
            self.q_a_proj = SeekletLinear(hidden, rank, bias=bias)
            self.q_a_layernorm = SeekletRMSNorm(rank)
            self.q_b_proj = SeekletLinear(rank, queries, bias=False)
        self.kv_a_proj_with_mqa = SeekletLinear(hidden, config.kv_lora_rank + config.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = SeekletRMSNorm(config.kv_lora_rank)
        expanded = self.num_heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = SeekletLinear(config.kv_lora_rank, expanded, bias=False)
        self.o_proj = SeekletLinear(self.num_heads * config.v_head_dim, hidden, bias=bias)
        self.apply_rope = SeekletApplyRope(config.rope_interleave)
        self.attend = SeekletMLAAttention()
        self.decode = SeekletMLADecode()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any,
        past_key_values: Cache | None = None,
        first_keys: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (B, S, hidden_size) and, with `attn_implementation="eager"`, the weights (B, H, S, T).

        `attention_mask` is what transformers' mask functions make for the chosen implementation: None, bool or
        additive (B, 1, S, T), 2-D padding (flash attention), or a flex BlockMask. `first_keys` (B or 1, S) come in its
        place where sequences are packed and `attends_by_kernel` says so.
        """
        q_nope, q_rope = self._queries(hidden_states)
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).split(
            [self.kv_lora_rank, self.qk_rope_head_dim], dim=-1
        )
        # One head of latents, so that every cache class of transformers takes them: (B, 1, S, L) and (B, 1, S, R).
        latent, k_rope = self.kv_a_layernorm(latent).unsqueeze(1), k_rope.unsqueeze(1)
        q_rope, k_rope = self.apply_rope(q_rope, k_rope, *position_embeddings)
        if past_key_values is not None:
            latent, k_rope = past_key_values.update(latent, k_rope, self.layer_idx)
            if attention_mask is None and past_key_values.is_compileable and hidden_states.shape[1] > 1:
                # Only into an empty static cache do several tokens come without a mask: behind them it is empty.
                latent, k_rope = (states[:, :, : hidden_states.shape[1]] for states in (latent, k_rope))
        parts = (q_nope, q_rope, latent, k_rope, attention_mask)
        if first_keys is None and self._absorb(q_nope, latent, attention_mask):
            output, weights = self._absorbed(*parts)
        else:
            output, weights = self._expanded(*parts, first_keys, **kwargs)
        return self.o_proj(output.flatten(-2)), weights

    def attends_by_kernel(self) -> bool:
        """Return whether a kernel stands ready for expanded attention, which needs no mask for packed sequences."""
        dropout = self.training and self.attention_dropout > 0
        return self.config._attn_implementation == "sdpa" and not dropout and _has_kernel(self.attend)

    def _queries(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.has_query_latent:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        else:
            queries = self.q_proj(hidden_states)
        queries = queries.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return queries.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)

    def _absorb(self, q_nope: torch.Tensor, latent: torch.Tensor, attention_mask: Any) -> bool:
        # The absorbed form reads no BlockMask and applies no dropout to the weights.
        if self.training and self.attention_dropout > 0:
            return False
        if attention_mask is not None and not isinstance(attention_mask, torch.Tensor):
            return False
        return decode_is_cheaper(
            q_nope.shape[2],
            latent.shape[2],
            self.kv_lora_rank,
            self.qk_nope_head_dim,
            self.qk_rope_head_dim,
            self.v_head_dim,
        )

    def _absorbed(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # k_nope = W_UK c, so q.k_nope = (W_UK^T q).c; v = W_UV c, so sum(p v) = W_UV sum(p c).
        # Each head's whole matrix [W_UK; W_UV] is multiplied, by zeros in the half that does not count: its halves
        # are no tensors that a batched product takes as they lie, and copying them costs several times as much.
        matrix, value_bias = self._up_projection(latent)
        batch, heads, queries, nope = q_nope.shape
        q = q_nope.transpose(0, 1).reshape(heads, batch * queries, nope)
        q_latent = torch.bmm(F.pad(q, (0, self.v_head_dim)), matrix)
        q_latent = q_latent.view(heads, batch, queries, -1).transpose(0, 1)
        parts, keys, weights = (q_latent, q_rope, latent[:, 0], k_rope[:, 0]), latent.shape[2], None
        if self.config._attn_implementation == "eager":
            mask = dense_mask(attention_mask, queries, keys, latent.device)
            output, weights = mla_decode(*parts, mask, self.scaling)
        else:
            mask = None if attention_mask is None else dense_mask(attention_mask, queries, keys, latent.device)
            output = self.decode(*parts, mask, self.scaling)
        output = output.permute(1, 3, 0, 2).reshape(heads, -1, batch * queries)
        output = torch.bmm(matrix, output)[:, nope:].view(heads, -1, batch, queries).permute(2, 3, 0, 1)
        if value_bias is not None:
            # The weights of a query add up to 1; a bias on the keys adds the same to all its scores and cancels.
            output = output + value_bias
        return output, weights

    def _up_projection(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return [W_UK; W_UV] (H, N + V, L), and the bias on the values (H, V) where there may be one."""
        linear, rank = self.kv_b_proj, self.kv_lora_rank
        if has_plain_weight(linear):
            return linear.weight.view(self.num_heads, -1, rank), None
        # An adapter or a quantised layer: its bias is what it makes of zeros, its matrix what it makes of the
        # identity, which costs what expanding `rank` cached tokens costs.
        image = linear(torch.eye(rank + 1, rank, dtype=latent.dtype, device=latent.device))
        image = image.view(rank + 1, self.num_heads, -1).permute(1, 2, 0)
        return image[..., :-1] - image[..., -1:], image[:, self.qk_nope_head_dim :, -1]

    def _expanded(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        attention_mask: Any,
        first_keys: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dropout = self.attention_dropout if self.training else 0.0
        implementation = self.config._attn_implementation
        has_kernel = self.attends_by_kernel() and _is_bool_or_none(attention_mask)
        weight = expanded = None
        if has_kernel and has_plain_weight(self.kv_b_proj):
            weight = self.kv_b_proj.weight
        else:
            expanded = self.kv_b_proj(latent[:, 0]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if has_kernel or (implementation == "sdpa" and _takes_reference(q_nope, attention_mask, dropout)):
            parts = (q_nope, q_rope, latent[:, 0], k_rope[:, 0], weight, expanded)
            return self.attend(*parts, attention_mask, self.scaling, first_keys).transpose(1, 2), None
        assert expanded is not None
        k_nope, value = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        query = torch.cat((q_nope, q_rope), dim=-1)
        key = torch.cat((k_nope, k_rope.expand(-1, self.num_heads, -1, -1)), dim=-1)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation or "eager", eager_attention)
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
