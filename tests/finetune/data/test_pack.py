"""Packed rows: how full they are, that nothing is lost, and that a model sees each conversation by itself."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, are_progress_bars_disabled
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from seeklet.finetune.data.pack import pack
from seeklet.finetune.errors import DataError
from tests.modeling.nano import build_ours, draw_tokens, relative_error


def dataset_of(lengths: Any) -> Dataset:
    """Return rows of these lengths, each with its own token ids, every other token learned."""
    ids = [np.arange(n, dtype=np.int32) + 100_000 * i for i, n in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": ids, "assistant_masks": [np.arange(n, dtype=np.uint8) % 2 for n in lengths]})


def rows_of(dataset: Dataset) -> list[Any]:
    return list(dataset)


def conversations(dataset: Dataset) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return (ids, masks) of every conversation in packed rows, sorted."""
    found = []
    for row in rows_of(dataset):
        start = 0
        for length in row["seq_lengths"]:
            stretch = slice(start, start + length)
            found.append((tuple(row["input_ids"][stretch]), tuple(row["assistant_masks"][stretch])))
            start += length
        assert start == len(row["input_ids"]) == len(row["assistant_masks"])
    return sorted(found)


# Tokens of a conversation: mean, spread (log-normal) and the length of a row, as in support chats, short questions and
# answers, and long threads.
DISTRIBUTIONS = {
    "support chats": (5.6, 0.7, 2048),
    "short answers": (4.1, 0.6, 2048),
    "short answers, long rows": (4.1, 0.6, 8192),
    "long threads": (6.6, 0.6, 4096),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_are_full_of_real_tokens(name: str) -> None:
    mean, spread, row_tokens = DISTRIBUTIONS[name]
    lengths = np.random.default_rng(0).lognormal(mean, spread, 5_000).clip(8, row_tokens).astype(int)
    packed = pack(dataset_of(lengths), row_tokens)
    assert packed.efficiency >= 0.97
    assert packed.efficiency == pytest.approx(lengths.sum() / (len(packed.dataset) * row_tokens))
    # No packing needs fewer rows than this.
    assert len(packed.dataset) <= 1.01 * np.ceil(lengths.sum() / row_tokens)


def test_every_conversation_is_there_once_and_whole() -> None:
    lengths = np.random.default_rng(1).integers(1, 65, 500)
    dataset = dataset_of(lengths)
    packed = pack(dataset, 64).dataset
    assert max(len(row["input_ids"]) for row in rows_of(packed)) <= 64
    assert conversations(packed) == sorted(
        (tuple(row["input_ids"]), tuple(row["assistant_masks"])) for row in rows_of(dataset)
    )
    # Nothing is cached on disk, and no bar is left switched off.
    assert packed.cache_files == []
    assert not are_progress_bars_disabled()


def test_the_same_data_gives_the_same_rows() -> None:
    lengths = np.random.default_rng(2).integers(1, 65, 300)
    assert pack(dataset_of(lengths), 64).dataset[:] == pack(dataset_of(lengths), 64).dataset[:]


def test_a_worked_example() -> None:
    packed = pack(dataset_of([3, 5, 2, 4]), 6)
    assert packed.dataset["seq_lengths"][:] == [[5], [4, 2], [3]]
    assert packed.efficiency == 14 / 18


def test_a_row_longer_than_the_packed_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="a row has 65 tokens; allowed when packing: at most 64"):
        pack(dataset_of([3, 65]), 64)


def test_no_rows() -> None:
    packed = pack(dataset_of([]), 64)
    assert (len(packed.dataset), packed.efficiency) == (0, 1.0)
    assert packed.dataset.column_names == ["input_ids", "assistant_masks", "seq_lengths"]


LENGTHS = (7, 5, 9, 1, 6, 4)


def packed_batch() -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Return conversations, and the batch that TRL's collator makes of them, packed."""
    tokens = [draw_tokens(1, length, seed=i) for i, length in enumerate(LENGTHS)]
    dataset = Dataset.from_dict(
        {"input_ids": [ids[0].tolist() for ids in tokens], "labels": [ids[0].tolist() for ids in tokens]}
    )
    packed = pack(dataset, 16).dataset
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([dict(row) for row in packed])
    return tokens, batch


def by_conversation(tokens: list[torch.Tensor], batch: dict[str, Any], states: torch.Tensor) -> list[torch.Tensor]:
    """Return the part of `states` (1, S, ...) that belongs to each conversation."""
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), states.shape[1]]
    parts = {tuple(batch["input_ids"][0, start:end].tolist()): states[:, start:end] for start, end in pairwise(starts)}
    return [parts[tuple(ids[0].tolist())] for ids in tokens]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_of_packed_conversations_are_those_of_each_alone(attention: str) -> None:
    model = build_ours(num_nextn_predict_layers=1, attn_implementation=attention).double().eval()
    tokens, batch = packed_batch()
    # Six conversations in rows of 16: (9, 7), (6, 5, 4, 1), joined to one row without padding.
    assert batch["position_ids"].shape == (1, sum(LENGTHS)) and "attention_mask" not in batch
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for ids, logits in zip(tokens, by_conversation(tokens, batch, together), strict=True):
            assert relative_error(logits, model(input_ids=ids, use_cache=False).logits) < 1e-12


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_loss_of_packed_conversations_is_their_mean(attention: str) -> None:
    """Language model and multi-token prediction alike: no label crosses from one conversation into the next."""
    model = build_ours(num_nextn_predict_layers=1, attn_implementation=attention, balance_loss_weight=0.0)
    model = model.double()
    tokens, batch = packed_batch()
    with torch.no_grad():
        together = model(**{name: batch[name] for name in ("input_ids", "position_ids", "labels")}, use_cache=False)
        alone = [model(input_ids=ids, labels=ids, use_cache=False) for ids in tokens if ids.shape[1] > 2]
        # Means over n - 1 next tokens and n - 2 tokens after next.
        lengths = [length for length in LENGTHS if length > 2]
        main = sum(one.lm_loss * (n - 1) for one, n in zip(alone, lengths, strict=True)) / sum(n - 1 for n in lengths)
        mtp = sum(one.mtp_loss * (n - 2) for one, n in zip(alone, lengths, strict=True)) / sum(n - 2 for n in lengths)
    assert together.lm_loss == pytest.approx(float(main), rel=1e-10)
    assert together.mtp_loss == pytest.approx(float(mtp), rel=1e-10)


def test_other_models_see_each_conversation_alone_too() -> None:
    """As long as no cache is used, which TRL sees to: with one, transformers takes a packed row for one sequence."""
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)
    model = LlamaForCausalLM(config).double().eval()
    tokens, batch = packed_batch()
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for ids, logits in zip(tokens, by_conversation(tokens, batch, together), strict=True):
            assert relative_error(logits, model(input_ids=ids, use_cache=False).logits) < 1e-12
