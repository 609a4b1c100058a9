"""What the losses ask of a batch: which of its tokens are real, and what part of an optimiser step it is."""

from typing import Any

import torch

from .mtp import IGNORE_INDEX


def real_tokens(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Return which tokens of the pass are no padding: bool (B*S,), or None where no padding mask is given."""
    tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    mask = inputs["attention_mask"]
    return mask.flatten().bool() if mask is not None and mask.shape == tokens.shape[:2] else None


def share_of_batch(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
    """Return the part of an optimiser step's labels that this micro-batch holds, by which its mean loss counts."""
    if num_items_in_batch is None:
        return 1.0
    items = (labels[:, 1:] != IGNORE_INDEX).sum()
    return items / (
        num_items_in_batch.to(items.device) if isinstance(num_items_in_batch, torch.Tensor) else num_items_in_batch
    )
