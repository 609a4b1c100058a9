"""Which experts each token was sent to while a model generated, so that training can send it to the same ones.

Generation and training round differently, and about one router in ten then chooses otherwise; in reinforcement learning
the probability of a token is then compared with one of another network, which makes training collapse (R3, rollout
routing replay: arXiv 2510.11370).
"""

# L main layers that route, R rows, P positions, K experts chosen per token, B rows and S tokens of one pass

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .model import SeekletModel
from .moe import SeekletMoE


class RoutingRecord:
    """Choices by row and position: `choices` (L, R, P, K), int16, -1 where nothing was recorded.

    A position is that of the token in its row, padding not counted. What is written later for the same place replaces
    what was there: drafts that were not accepted leave nothing behind.
    """

    def __init__(self, num_layers: int, num_rows: int, num_positions: int, top_k: int, device: Any = None):
        self.choices = torch.full((num_layers, num_rows, num_positions, top_k), -1, dtype=torch.int16, device=device)
        self.rows = torch.arange(num_rows, device=device)
        """Which rows of the record the rows of a pass are; whoever drops rows from the batch sets it."""

    def write(self, layer: int, positions: torch.Tensor, indices: torch.Tensor) -> None:
        """Put down `indices` (B*S, K) of a pass at `positions` (B or 1, S); negative or too large ones are left out."""
        top_k = indices.shape[-1]
        positions = positions.expand(len(self.rows), -1)
        kept = (positions >= 0) & (positions < self.choices.shape[2])
        rows = self.rows[:, None].expand_as(positions)
        chosen = indices.view(*positions.shape, top_k).to(self.choices.dtype)
        self.choices[layer, rows[kept], positions[kept]] = chosen[kept]

    def read(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the `expert_choice` (L, B, S, K) of a pass over `rows` (B,) of the record, padded as the mask says."""
        positions = padded_positions(attention_mask)
        last = self.choices.shape[2] - 1
        found = self.choices[:, rows[:, None], positions.clamp(0, last)]
        outside = (positions < 0) | (positions > last)
        return found.masked_fill(outside[None, :, :, None], -1).long()


def padded_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its row: (B, S), -1 for padding, wherever that is.

    >>> padded_positions(torch.tensor([[0, 0, 1, 1, 1]]))
    tensor([[-1, -1,  0,  1,  2]])
    """
    return (attention_mask.long().cumsum(1) - 1).masked_fill(attention_mask == 0, -1)


@contextmanager
def record_routing(model: torch.nn.Module, num_rows: int, num_positions: int) -> Iterator[RoutingRecord]:
    """Give the record of what the main layers' routers of the seeklet model in `model` choose inside the block.

    Passes over `num_rows` rows, or over those that `RoutingRecord.rows` names, of up to `num_positions` tokens.
    """
    decoder = next(module for module in model.modules() if isinstance(module, SeekletModel))
    main = list(decoder.layers)[: decoder.config.num_hidden_layers]
    layers: list[SeekletMoE] = [layer.mlp for layer in main if isinstance(layer.mlp, SeekletMoE)]
    device = decoder.embed_tokens.weight.device
    record = RoutingRecord(len(layers), num_rows, num_positions, decoder.config.num_experts_per_tok, device)
    positions = torch.empty(0)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal positions
        positions = _positions_of(kwargs)

    hooks = [decoder.register_forward_pre_hook(before, with_kwargs=True)]
    for index, layer in enumerate(layers):

        def after(_: Any, __: Any, outputs: tuple[torch.Tensor, ...], index: int = index) -> None:
            record.write(index, positions, outputs[2].to(device))

        hooks.append(layer.gate.register_forward_hook(after))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _positions_of(inputs: dict[str, Any]) -> torch.Tensor:
    """Return the positions (B or 1, S) of the tokens of a pass, -1 for padding."""
    tokens = inputs.get("input_ids")
    tokens = inputs["inputs_embeds"] if tokens is None else tokens
    length, mask, cache = tokens.shape[1], inputs.get("attention_mask"), inputs.get("past_key_values")
    if mask is not None and mask.dim() == 2:
        return padded_positions(mask)[:, -length:]
    if inputs.get("position_ids") is not None:
        return inputs["position_ids"]
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + length, device=tokens.device)[None]
