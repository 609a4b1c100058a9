"""What attention may see, as tensors: causal, padded, packed."""

# B batch, S queries, T keys

import torch
from transformers.masking_utils import find_packed_sequence_indices


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor | None:
    """Return bool (S, T), the last query standing at the last key; None for one query, which may see all."""
    if num_queries == 1:
        return None
    keys = torch.arange(num_keys, device=device)
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)
    return keys[None, :] <= queries[:, None]


def dense_mask(
    attention_mask: torch.Tensor | None, num_queries: int, num_keys: int, device: torch.device
) -> torch.Tensor | None:
    """Return a mask broadcastable to (B, H, S, T) from what a mask function made, or None where all may be seen.

    None stands for plain causal attention in transformers, a 2-D mask (B, T) for padding under flash attention; the
    last query always stands at the last key.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask[..., :num_keys]
    causal = causal_mask(num_queries, num_keys, device)
    if attention_mask is None:
        return causal
    padding = attention_mask[:, None, None, -num_keys:].bool()
    return padding if causal is None else causal & padding


def packed_first_keys(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Return the first key (B or 1, S) that each token sees, that of its own sequence; None where a row is just one.

    A sequence begins wherever a position is not the former one plus 1, as for transformers' masks: positions
    (0, 1, 2, 0, 1) give (0, 0, 0, 3, 3). While compiling nobody looks, and zeros may come of it.
    """
    ids = find_packed_sequence_indices(position_ids)
    # In rising order, so that the first place an id would be put in is the one where its sequence begins.
    return None if ids is None else torch.searchsorted(ids.contiguous(), ids.contiguous())


def packed_mask(first_keys: torch.Tensor) -> torch.Tensor:
    """Return bool (B or 1, 1, S, S): causal, from each token's first key (B or 1, S) on."""
    tokens = torch.arange(first_keys.shape[-1], device=first_keys.device)
    return ((tokens <= tokens[:, None]) & (tokens >= first_keys[..., None]))[:, None]
