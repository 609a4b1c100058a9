"""Multi-token prediction: the modules, and the shifts of inputs and labels (DeepSeek-V3 report, section 2.2)."""

# B batch, S positions, H hidden, k depth of the module, counted from 1

import torch
from torch import nn

from .balance import sequence_ids
from .configuration import SeekletConfig
from .layer import SeekletDecoderLayer
from .linear import SeekletLinear
from .norm import SeekletRMSNorm

IGNORE_INDEX = -100


class SharedHeadNorm(nn.Module):
    """Holds the norm before the shared output head under its published name, `shared_head.norm`."""

    def __init__(self, config: SeekletConfig):
        super().__init__()
        self.norm = SeekletRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class SeekletMTPLayer(SeekletDecoderLayer):
    """One MTP module: a decoder layer that also sees the embedding of a later token.

    Module k turns the hidden state h^{k-1}_i of position i and the embedding of token t_{i+k} into h^k_i, from which
    the model's own head predicts token t_{i+k+1} (equations 21 to 23). Embedding and head are the main model's.
    It stands in `model.layers` behind the main layers, where the published checkpoints have it.
    """

    def __init__(self, config: SeekletConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.enorm = SeekletRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = SeekletRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = SeekletLinear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHeadNorm(config)

    def forward(self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor, **kwargs) -> torch.Tensor:
        """Return h^k (B, S, H), normed for the head and for module k+1, from h^{k-1} and the later embeddings.

        `hidden_states` is h^{k-1} (for k = 1 the main model's normed output), `inputs_embeds` holds at position i the
        embedding of token t_{i+k}; the rest as in `SeekletDecoderLayer`.
        """
        merged = self.eh_proj(torch.cat((self.enorm(inputs_embeds), self.hnorm(hidden_states)), dim=-1))
        return self.shared_head.norm(super().forward(merged, **kwargs))


def shift_left(x: torch.Tensor, steps: int, fill: float = 0) -> torch.Tensor:
    """Return `x` (B, S, ...) moved `steps` positions to the left, `fill` coming in at the right."""
    if steps >= x.shape[1]:
        return torch.full_like(x, fill)
    tail = x.new_full((x.shape[0], steps, *x.shape[2:]), fill)
    return torch.cat((x[:, steps:], tail), dim=1)


def mtp_labels(labels: torch.Tensor, depth: int, position_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return what module `depth` has to predict at each position: (B, S), IGNORE_INDEX where there is nothing.

    At position i that is label i + depth + 1, unless it lies behind the end or in another packed sequence.

    Example: tokens (10, 11, 12, 13, 14), all labelled, depth 1. Position 0 sees h_0 and the embedding of token 11 and
    predicts 12; position 2 sees h_2 and token 13 and predicts 14; positions 3 and 4 have nothing to predict:
    (12, 13, 14, -100, -100). At depth 2, position 0 sees h^1_0 and token 12 and predicts 13: (13, 14, -100, -100,
    -100). Packed as (10, 11, 12 | 13, 14), that is position_ids (0, 1, 2, 0, 1), depth 1 gives
    (12, -100, -100, -100, -100): position 1 would need 13, which is another sequence.
    """
    shifted = shift_left(labels, depth + 1, IGNORE_INDEX)
    if position_ids is None:
        return shifted
    ids = sequence_ids(position_ids).expand_as(labels)
    return shifted.masked_fill(shift_left(ids, depth + 1, -1) != ids, IGNORE_INDEX)
