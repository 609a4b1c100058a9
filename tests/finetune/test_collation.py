"""What a batch holds, number by number, and that packing changes no loss and no gradient."""

import pytest
import torch

from seeklet.finetune.collation import TokenCollator
from seeklet.finetune.losses import use_head_loss
from tests.finetune.test_losses import build
from tests.modeling.nano import assert_same_gradients, build_ours, draw_tokens
from tests.modeling.test_moe import counts

PAD = 0
ROWS = [
    {"input_ids": [11, 12, 13, 14], "assistant_masks": [0, 0, 1, 1]},
    {"input_ids": [21, 22], "assistant_masks": [1, 1]},
]
PACKED = [
    {"input_ids": [11, 12, 13, 21, 22], "assistant_masks": [0, 1, 1, 1, 1], "seq_lengths": [3, 2]},
    {"input_ids": [31, 32, 33], "assistant_masks": [0, 0, 1], "seq_lengths": [3]},
]


def test_rows_are_padded_and_labelled_where_trained_on() -> None:
    batch = TokenCollator(PAD)(ROWS)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 14], [21, 22, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[-100, -100, 13, 14], [21, 22, -100, -100]],
    }


def test_packed_rows_are_joined() -> None:
    batch = TokenCollator(PAD)(PACKED)
    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22, 31, 32, 33]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    # 21 begins a conversation: what stands before it is of another.
    assert batch["labels"].tolist() == [[-100, 12, 13, -100, 22, -100, -100, 33]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8] and batch["max_length_q"] == 3


def test_packed_rows_are_stacked() -> None:
    batch = TokenCollator(PAD, joins_packed_rows=False)(PACKED)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 21, 22], [31, 32, 33, PAD, PAD]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]],
        "labels": [[-100, 12, 13, -100, 22], [-100, -100, 33, -100, -100]],
    }


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("name", ["ours", "llama"])
def test_packing_changes_no_loss_and_no_gradient(name: str, joins: bool) -> None:
    lengths = ((7, 4, 5), (6, 8))
    tokens = iter(draw_tokens(5, 9).tolist())
    alone = [
        {"input_ids": row[:length], "assistant_masks": [0, 0] + [1] * (length - 2)}
        for row, length in zip(tokens, sum(lengths, ()), strict=True)
    ]
    packed, start = [], 0
    for parts in lengths:
        group = alone[start : start + len(parts)]
        joined = {key: [value for row in group for value in row[key]] for key in group[0]}
        packed.append(joined | {"seq_lengths": list(parts)})
        start += len(parts)
    results = []
    for rows in (alone, packed):
        if name == "ours":
            model = build_ours(num_nextn_predict_layers=1, balance_loss_weight=0.1).double()
        else:
            model = use_head_loss(build(name))
        batch = TokenCollator(PAD, joins_packed_rows=joins)(rows)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        # A conversation's last token has another one behind it, which the MTP module's router sees and no loss does.
        load = counts(model)[:2]
        results.append((model, loss, load))
    (model, loss, load), (expected_model, expected, expected_load) = results
    assert load == expected_load
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert_same_gradients(model, expected_model, 1e-8)
