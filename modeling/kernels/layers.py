"""Every layer that a model's hooks can take from this package, each named as its hook.

Layers are pure, as the `kernels` library demands: no constructor, no other methods, the forward signature of the layer
they replace, whose attributes they read. `has_backward` and `can_torch_compile` are all they may say about themselves.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .grouped_experts.op import grouped_experts
from .grouped_fp8.op import grouped_fp8, grouped_fp8_quantized, refuse_parametrized
from .grouped_lora.op import LowRank, grouped_lora
from .linear.op import fp8_linear, fp8_linear_quantized
from .mla_attention.library import attend, attend_from_latent
from .mla_decode.op import mla_decode
from .rms_norm.op import add_rms_norm, rms_norm
from .rope.op import apply_rope
from .router.op import route
from .swiglu.op import swiglu

# Compute capability from which on the kernels are compiled and tested.
MIN_CAPABILITY = 80
# Layers whose result or gradients may differ in the last bits from one run to the next.
NOT_DETERMINISTIC: frozenset[str] = frozenset()


class SeekletRMSNorm(nn.Module):
    """RMSNorm over the last dimension."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states` (..., D) normalised, times `weight` (D,)."""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class SeekletAddRMSNorm(nn.Module):
    """Sum with the residual, and RMSNorm of it over the last dimension."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of both (..., D) normalised, times `weight` (D,), and the sum."""
        # Under autocast a projection gives half precision, and the residual stays as wide as it was.
        dtype = torch.promote_types(hidden_states.dtype, residual.dtype)
        return add_rms_norm(hidden_states.to(dtype), residual.to(dtype), self.weight, self.variance_epsilon)


class SeekletSwiGLU(nn.Module):
    """silu(gate) * up."""

    has_backward = True
    can_torch_compile = True

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return `silu(gate) * up`, elementwise (..., I)."""
        return swiglu(gate, up)


class SeekletApplyRope(nn.Module):
    """Rotates the rope part of queries and of the shared key; pairs interleaved or not, as the weights hold them."""

    has_backward = True
    can_torch_compile = True
    interleaved: bool

    def forward(
        self, q_rope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `q_rope` (B, H, S, R) and `k_rope` (B, 1, S, R) rotated by `cos`, `sin` (B or 1, S, R)."""
        return apply_rope(q_rope, k_rope, cos, sin, self.interleaved)


class SeekletMLAAttention(nn.Module):
    """Attention with expanded keys and values; made from the latent by `weight`, they are not kept for backward."""

    has_backward = True
    can_torch_compile = True

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
        """Return the output (B, H, S, V); `expanded` (B, H, T, N + V) is given where `weight` (H(N + V), L) is not."""
        if expanded is None:
            assert weight is not None
            return attend_from_latent(q_nope, q_rope, latent, k_rope, weight, mask, scaling, first_keys)
        nope = q_nope.shape[-1]
        k_nope, value = expanded[..., :nope], expanded[..., nope:]
        return attend(q_nope, q_rope, k_nope, k_rope, value, mask, scaling, first_keys)


class SeekletMLADecode(nn.Module):
    """Attention over the latent cache for few query tokens."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        q_latent: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        """Return the output (B, H, S, L); without `mask` causal, the last query standing at the last key."""
        batch, _, queries, _ = q_latent.shape
        lengths = None
        if mask is None and queries > 1:
            lengths = latent.new_full((batch,), latent.shape[1], dtype=torch.int32)
        return mla_decode(q_latent, q_rope, latent, k_rope, mask, scaling, lengths)


class SeekletRouter(nn.Module):
    """Chooses the experts of each token; the product with `weight` in fp32, choice and weights in one kernel."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    e_score_correction_bias: torch.Tensor
    routing: dict[str, Any]

    def forward(
        self,
        hidden_states: torch.Tensor,
        logits_delta: torch.Tensor | None = None,
        expert_choice: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (T, E) and weights (T, K), both fp32, and indices (T, K)."""
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.flatten(0, -2).to(wide), self.weight.to(wide))
        if logits_delta is not None:
            logits = logits + logits_delta
        weights, indices = route(logits, self.e_score_correction_bias, expert_choice=expert_choice, **self.routing)
        return logits, weights, indices


class SeekletExperts(nn.Module):
    """All routed experts, with low-rank terms where an adapter gives them."""

    has_backward = True
    can_torch_compile = True
    gate_up_proj: torch.Tensor
    down_proj: torch.Tensor

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the experts `top_k_index` (T, K) of `hidden_states` (T, H)."""
        inputs = (hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj)
        return grouped_experts(*inputs) if low_rank is None else grouped_lora(*inputs, *low_rank)


class SeekletFp8Experts(nn.Module):
    """All routed experts with frozen block-fp8 weights, with low-rank terms where an adapter gives them."""

    has_backward = True
    can_torch_compile = True
    gate_up_proj: torch.Tensor
    gate_up_proj_scale_inv: torch.Tensor
    down_proj: torch.Tensor
    down_proj_scale_inv: torch.Tensor

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the experts `top_k_index` (T, K) of `hidden_states` (T, H)."""
        refuse_parametrized(self)
        inputs = (hidden_states, top_k_index, top_k_weights)
        codes, scales = (self.gate_up_proj, self.down_proj), (self.gate_up_proj_scale_inv, self.down_proj_scale_inv)
        if low_rank is not None:
            return grouped_lora(*inputs, *codes, *low_rank, *scales)
        return grouped_fp8(*inputs, codes[0], scales[0], codes[1], scales[1])


class SeekletFp8ExpertsQuantized(nn.Module):
    """Likewise, with the inputs of both projections rounded to fp8 too; no hook's default, as the result is another.

    To take it: `kernelize(model, "inference", mapping={"SeekletFp8Experts": {"cuda": InTree(<this name>)}})`.
    """

    has_backward = False
    can_torch_compile = True
    gate_up_proj: torch.Tensor
    gate_up_proj_scale_inv: torch.Tensor
    down_proj: torch.Tensor
    down_proj_scale_inv: torch.Tensor

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the experts `top_k_index` (T, K) of `hidden_states` (T, H).

        Raises:
            ValueError: there are low-rank terms, which are made for unrounded inputs.
        """
        refuse_parametrized(self)
        if low_rank is not None:
            raise ValueError("experts whose inputs are rounded to fp8 take no low-rank terms; use SeekletFp8Experts")
        inputs = (hidden_states, top_k_index, top_k_weights)
        stored = (self.gate_up_proj, self.gate_up_proj_scale_inv, self.down_proj, self.down_proj_scale_inv)
        return grouped_fp8_quantized(*inputs, *stored)


class SeekletFp8Linear(nn.Module):
    """A linear layer with a frozen block-fp8 weight."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    weight_scale_inv: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (..., R) for `x` (..., C), in the dtype of `x`."""
        output = fp8_linear(x, self.weight, self.weight_scale_inv)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class SeekletFp8LinearQuantized(nn.Module):
    """Likewise, with its input rounded to fp8 too; to be taken as `SeekletFp8ExpertsQuantized` is."""

    has_backward = False
    can_torch_compile = True
    weight: torch.Tensor
    weight_scale_inv: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (..., R) for `x` (..., C), in the dtype of `x`."""
        output = fp8_linear_quantized(x, self.weight, self.weight_scale_inv)
        return output if self.bias is None else output + self.bias.to(output.dtype)
