"""How likely a model finds the answers of held-out conversations: the loss that training minimises, per example."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .measures import Array

# Logits of one forward pass stay below this many numbers (1 GiB in float32); a single longer row passes alone.
MAX_LOGITS = 2**28


class Scored(NamedTuple):
    """A conversation as training sees it: its tokens, and 1 for each that is trained on (TRL's `assistant_masks`)."""

    input_ids: Sequence[int]
    assistant_mask: Sequence[int]


@torch.inference_mode()
def answer_losses(
    model: Any, rows: Sequence[Scored], batch_size: int, on_rows: Callable[[int], None] = lambda number: None
) -> Array:
    """Return (N, 2): of each row the summed cross entropy of its trained tokens, in nats, and how many they are.

    A token is predicted from those before it, so the first of a row never counts:

        tokens    a  b  c  d
        mask      1  0  1  1     scored: c from (a, b), d from (a, b, c)

    `on_rows` is told how many rows each pass did. The model is in evaluation mode meanwhile, so multi-token prediction
    and balance losses play no part.
    """
    results = np.zeros((len(rows), 2))
    was_training = model.training
    model.eval()
    try:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        for indices in _batches(rows, batch_size, MAX_LOGITS // vocabulary):
            results[indices] = _batch_losses(model, [rows[index] for index in indices])
            on_rows(len(indices))
    finally:
        model.train(was_training)
    return results


def _batch_losses(model: Any, rows: list[Scored]) -> Array:
    length = max(len(row.input_ids) for row in rows)
    ids, valid, scored = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for index, row in enumerate(rows):
        end = len(row.input_ids)
        ids[index, :end] = torch.tensor(row.input_ids)
        valid[index, :end] = 1
        scored[index, :end] = torch.tensor(row.assistant_mask)
    device = model.get_input_embeddings().weight.device
    logits = model(input_ids=ids.to(device), attention_mask=valid.to(device), use_cache=False).logits
    # Position t predicts token t + 1; only those that count are widened to float32.
    counts = scored[:, 1:].bool()
    at = counts.to(logits.device)
    nats = cross_entropy(logits[:, :-1][at].float(), ids[:, 1:].to(logits.device)[at], reduction="none").double().cpu()
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, counts.nonzero()[:, 0], nats)
    return torch.stack([sums, counts.sum(1).double()], dim=1).numpy()


def _batches(rows: Sequence[Scored], batch_size: int, max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of rows, longest first: at most `batch_size`, and padded at most `max_tokens`, or one row."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids), reverse=True)
    while order:
        size = max(1, min(batch_size, max_tokens // len(rows[order[0]].input_ids)))
        yield order[:size]
        order = order[size:]
