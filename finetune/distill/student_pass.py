"""One pass of a model for distillation: its hidden states, and what a seeklet student learns besides."""

# B rows, S positions, H hidden

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from seeklet.modeling import SeekletForCausalLM
from seeklet.modeling.mtp import IGNORE_INDEX
from seeklet.modeling.routing_record import padded_positions

from ..training_model import MtpLoss


@dataclass(frozen=True)
class StudentPass:
    """What a pass has brought."""

    hidden: torch.Tensor
    """(B, S, H), as the head takes them."""
    extra_loss: torch.Tensor | None = None
    """Multi-token prediction and balance loss, weighted and summed; None where the model has none."""
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    """These by name, detached and not weighted."""


def bare_model(model: nn.Module) -> Any:
    """Return the model inside an adapter; a model without one as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def run_student(
    model: nn.Module,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor,
    num_items: torch.Tensor | float | None,
    mtp_loss: MtpLoss,
    position_ids: torch.Tensor | None = None,
) -> StudentPass:
    """Return the pass of a student; in training a seeklet model's multi-token prediction and balance losses too.

    Args:
        model: any causal language model, or an adapter on one; inside what wraps it for several processes.
        tokens: (B, S).
        attention_mask: (B, S), padded on either side or both, or None.
        labels: (B, S), not shifted: what multi-token prediction is trained on, -100 elsewhere.
        num_items: labels in the whole batch of an optimiser step.
        mtp_loss: how the multi-token prediction modules are trained.
        position_ids: (B, S); None counts them from the mask.
    """
    bare = bare_model(model)
    inputs = _inputs(tokens, attention_mask, position_ids)
    if not (isinstance(bare, SeekletForCausalLM) and bare.training and torch.is_grad_enabled()):
        return StudentPass(bare.base_model(**inputs).last_hidden_state)
    outputs = bare(
        **inputs,
        labels=labels,
        # No next-token loss: the divergence stands in its place.
        shift_labels=torch.full_like(labels, IGNORE_INDEX),
        num_items_in_batch=num_items,
        mtp_loss=mtp_loss,
        output_hidden_states=True,
        return_logits=False,
    )
    found = {name: getattr(outputs, name) for name in ("mtp_loss", "balance_loss")}
    parts = {name: part.detach() for name, part in found.items() if part is not None}
    return StudentPass(outputs.hidden_states[-1], outputs.loss, parts)


@torch.no_grad()
def run_teacher(
    model: nn.Module,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the hidden states (B, S, H) of a teacher, as its head takes them; arguments as of `run_student`."""
    return bare_model(model).base_model(**_inputs(tokens, attention_mask, position_ids)).last_hidden_state


def _inputs(
    tokens: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> dict[str, Any]:
    if position_ids is None and attention_mask is not None:
        position_ids = padded_positions(attention_mask).clamp(min=0)
    return {
        "input_ids": tokens,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "use_cache": False,
    }
