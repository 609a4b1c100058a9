"""What the causal language model returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import MoeCausalLMOutputWithPast


@dataclass
class SeekletCausalLMOutput(MoeCausalLMOutputWithPast):
    """What SeekletForCausalLM returns beside transformers' fields.

    `loss` is `lm_loss` in evaluation; in training it adds `mtp_loss_weight * mtp_loss` and
    `balance_loss_weight * balance_loss`. `expert_load` holds, where asked for, one int64 (E,) per MoE layer. With
    `temperature`, `log_probs` and `entropy` (B, S) are there in place of `lm_loss`, and `loss` is the sum of the
    others.
    """

    lm_loss: torch.Tensor | None = None
    mtp_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    expert_load: tuple[torch.Tensor, ...] | None = None
