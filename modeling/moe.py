"""Mixture-of-experts layer: router, routed experts as fused 3-D parameters, shared experts."""

# T tokens, H hidden, E experts, K experts chosen per token, I expert width

from typing import Any

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from torch.nn import functional as F
from transformers.integrations.moe import use_experts_implementation

from .balance import count_experts
from .configuration import SeekletConfig
from .expert_exchange import ExpertExchange
from .fp32_buffers import Fp32Buffers
from .kernels.grouped_experts.op import grouped_experts
from .kernels.grouped_lora.op import LowRank, grouped_lora
from .kernels.router.reference import route
from .kernels.swiglu.reference import swiglu
from .linear import SeekletLinear


@use_kernel_forward_from_hub("SeekletSwiGLU")
class SeekletSwiGLU(nn.Module):
    """silu(gate) * up."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return `silu(gate) * up`, elementwise (..., I)."""
        return swiglu(gate, up)


class SeekletMLP(nn.Module):
    """SwiGLU feed-forward of the dense layers and of the shared experts."""

    def __init__(self, config: SeekletConfig, intermediate_size: int):
        super().__init__()
        self.gate_proj = SeekletLinear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = SeekletLinear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = SeekletLinear(intermediate_size, config.hidden_size, bias=False)
        self.activation = SeekletSwiGLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward output of `x` (..., H)."""
        return self.down_proj(self.activation(self.gate_proj(x), self.up_proj(x)))


@use_kernel_forward_from_hub("SeekletRouter")
class SeekletRouter(Fp32Buffers):
    """Chooses the experts of each token; scores in fp32, the bias for the choice only.

    `e_score_correction_bias` (E,) stays fp32 whatever the model is cast to: bf16 has three significant digits, and a
    bias of 1 moved by 0.001 would not move at all.
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: SeekletConfig):
        super().__init__()
        # Read once: off the config it takes 2 us each, at every call.
        self.routing: dict[str, Any] = {
            "scoring_func": config.scoring_func,
            "n_group": config.n_group,
            "topk_group": config.topk_group,
            "top_k": config.num_experts_per_tok,
            "norm_topk_prob": config.norm_topk_prob,
            "routed_scaling_factor": config.routed_scaling_factor,
        }
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(
        self,
        hidden_states: torch.Tensor,
        logits_delta: torch.Tensor | None = None,
        expert_choice: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (T, E) and weights (T, K), both fp32 (float64 for float64 input), and indices (T, K).

        `logits_delta` (T, E) is what an adapter adds to the logits. `expert_choice` (T, K) is taken in place of the
        router's own choice, except for tokens where it is negative; the weights are of the logits all the same.
        """
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        # Under autocast a product would be bf16 again, and with it ties and other choices.
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.flatten(0, -2).to(wide), self.weight.to(wide))
        if logits_delta is not None:
            logits = logits + logits_delta
        weights, indices = route(logits, self.e_score_correction_bias, expert_choice=expert_choice, **self.routing)
        return logits, weights, indices


@use_kernel_forward_from_hub("SeekletExperts")
@use_experts_implementation
class SeekletExperts(nn.Module):
    """All routed experts: `gate_up_proj` (E, 2I, H), gate rows first, and `down_proj` (E, H, I).

    transformers' other implementations (`model.set_experts_implementation("grouped_mm")`, ...) take the same
    parameters; ours, called "eager" there, is the default.
    """

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(self, config: SeekletConfig):
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = nn.SiLU()

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the chosen experts `top_k_index` (T, K) of `hidden_states` (T, H).

        `low_rank` is what an adapter adds to `gate_up_proj` and to `down_proj`; both are frozen then.
        """
        inputs = (hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj)
        return grouped_experts(*inputs) if low_rank is None else grouped_lora(*inputs, *low_rank)


class SeekletMoE(nn.Module):
    """Shared experts plus the routed experts that the router chooses (DeepSeek-V3 report, equation 12).

    While training it adds up `expert_counts` (E,), the tokens each expert got since the router bias was last
    updated. The counts are no buffer: DistributedDataParallel would overwrite them by those of rank 0.
    """

    def __init__(self, config: SeekletConfig):
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.gate = SeekletRouter(config)
        self.experts = SeekletExperts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            self.shared_experts = SeekletMLP(config, config.moe_intermediate_size * config.n_shared_experts)
        self.expert_counts: torch.Tensor | None = None
        # Set where `experts` are some of all, and other processes hold the others.
        self.exchange: ExpertExchange | None = None

    @property
    def router(self) -> SeekletRouter:
        """The router itself, also where an adapter is wrapped around it."""
        return next(module for module in self.gate.modules() if isinstance(module, SeekletRouter))

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        count_load: bool = False,
        expert_choice: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output (B, S, H); with `count_load`, tokens whose `token_mask` (B, S) is not False are counted.

        `expert_choice` (B, S, K) is as in the router.
        """
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        choice = {} if expert_choice is None else {"expert_choice": expert_choice.flatten(0, 1)}
        _, weights, indices = self.gate(tokens, **choice)
        if count_load and _first_forward():
            valid = None if token_mask is None else token_mask.flatten()
            counts = count_experts(indices, self.num_experts, valid)
            self.expert_counts = counts if self.expert_counts is None else self.expert_counts + counts
            if self.exchange is not None:
                self.exchange.count(indices, valid)
        if self.exchange is None:
            output = self.experts(tokens, indices, weights)
        else:
            output = self.exchange(self.experts, tokens, indices, weights)
        output = output.view(hidden_states.shape)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output


def _first_forward() -> bool:
    # Gradient checkpointing runs the forward once more inside the backward pass; tokens count once.
    return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1
