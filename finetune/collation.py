"""Rows of tokens as the tensors of one batch: padded, or packed with positions that tell conversations apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from seeklet.modeling.mtp import IGNORE_INDEX


@dataclass(frozen=True)
class TokenCollator:
    """Makes a batch of rows that hold `input_ids`, `assistant_masks` and, where they are packed, `seq_lengths`.

    Labels are the tokens that are trained on, -100 elsewhere. Rows that are not packed are padded on the right, with an
    attention mask. Packed ones have `position_ids` that start at 0 with each conversation and no mask, and the first
    token of a conversation has no label: nothing before it may predict it.
    """

    pad_token_id: int
    # Whether packed rows are joined to a single one, as variable-length attention kernels need it; nothing is padded
    # then, so a mixture of experts sees real tokens only. Else each stays a row, which costs other kernels less.
    joins_packed_rows: bool = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch: `input_ids`, `labels` (B, S), and `attention_mask` or `position_ids`."""
        packed = "seq_lengths" in rows[0]
        labelled = [_with_labels(row) for row in rows]
        if packed and not self.joins_packed_rows:
            return self._stack_packed(labelled)
        collate = DataCollatorForLanguageModeling(self.pad_token_id, padding_free=packed)
        return collate(labelled)

    def _stack_packed(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        positions = [torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows]
        # Padding has position 0 throughout, so each of it is a sequence of its own.
        batch = {
            "input_ids": _pad([torch.as_tensor(row["input_ids"]) for row in rows], self.pad_token_id),
            "labels": _pad([torch.as_tensor(row["labels"]) for row in rows], IGNORE_INDEX),
            "position_ids": _pad(positions, 0),
        }
        batch["labels"][batch["position_ids"] == 0] = IGNORE_INDEX
        return batch


def _with_labels(row: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    labels = [token if trained else IGNORE_INDEX for token, trained in pairs]
    lengths = {"seq_lengths": row["seq_lengths"]} if "seq_lengths" in row else {}
    return {"input_ids": row["input_ids"], "labels": labels, **lengths}


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
