"""What the losses ask of a batch: which of its tokens are real, and what part of an optimiser step it is."""

import torch

from .mtp import IGNORE_INDEX


def real_tokens(
    shape: torch.Size, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """Return which tokens of a pass are no padding: bool (B, S), or None where nothing tells.

    Packed rows have no mask: where a row ends in tokens at position 0, these are padding. (A last conversation of one
    token looks the same; nothing is learned from it.)

    Args:
        shape: (B, S), or more dimensions after them.
        attention_mask: (B, S), False or 0 for padding; a mask of another shape tells nothing.
        position_ids: (B or 1, S), each conversation's from 0.
    """
    if attention_mask is not None and attention_mask.shape == shape[:2]:
        return attention_mask.bool()
    if position_ids is None:
        return None
    real = position_ids.flip(1).cumsum(1).flip(1) > 0
    # Of a row's first token position 0 says nothing.
    return torch.cat((torch.ones_like(real[:, :1]), real[:, 1:]), dim=1).expand(shape[:2])


def share_of_batch(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
    """Return the part of an optimiser step's labels that this micro-batch holds, by which its mean loss counts."""
    if num_items_in_batch is None:
        return 1.0
    items = (labels[:, 1:] != IGNORE_INDEX).sum()
    return items / (
        num_items_in_batch.to(items.device) if isinstance(num_items_in_batch, torch.Tensor) else num_items_in_batch
    )
