"""Lets a teacher read rows once, and keeps its most likely tokens at each position that a student is to learn."""

# B rows, S positions, N labelled positions, K tokens kept, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seeklet.modeling.kernels.linear_cross_entropy.reference import MIN_CHUNK_ROWS
from seeklet.modeling.mtp import IGNORE_INDEX, shift_left

from ..atomic_files import replaced_file
from ..checkpoints import remove_unfinished
from ..collation import TokenCollator
from ..errors import DataError, RecipeError, TrainingError
from ..losses import check_head
from ..published import public_name
from ..training_model import find_seeklet
from .divergence import log_softmax
from .head_divergence import bucket_log_probs
from .settings import TopKSettings
from .student_pass import run_teacher
from .topk_files import MANIFEST, Shard, TopKManifest, check_shard, make_manifest, read_manifest, row_key, sha256_of

# Token numbers below this take two bytes, the others four.
SHORT = 2**16


def write_topk(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]] | Dataset,
    folder: Path,
    settings: TopKSettings,
    *,
    name: str,
    revision: str | None = None,
    num_shared: int | None = None,
    on_tokens: Callable[[int], None] = lambda number: None,
) -> TopKManifest:
    """Write the cache of `rows` to `folder`, or what is missing of it there, and return its manifest.

    A run that was killed goes on behind its last whole shard, and what it leaves is the same to the last byte. Each
    position takes 6 bytes a token kept and 2 more, or 4 and 2 with at most 65,536 logits: for 32 tokens of DeepSeek-V3
    194 bytes measured, where its whole distribution in half precision has 258,560.

    Args:
        teacher: on the device it is to run on; is put into evaluation mode.
        tokenizer: what has written the rows.
        rows: `input_ids`, `assistant_masks` and, where packed, `seq_lengths`, as `data.prepare` makes them.
        folder: is made where it is not there.
        settings: what is kept.
        name: the teacher's path or name; of a path only the last part is written down.
        revision: the teacher's.
        num_shared: logits behind the first so many are left out; None is all (`vocabulary.shared_vocabulary`).
        on_tokens: told after each batch how many positions it brought.

    Raises:
        DataError: the folder holds the cache of other data, or one that is damaged; a row has nothing to learn, or
            tokens that the teacher does not know.
        RecipeError: the settings do not fit the teacher.
        TrainingError: the teacher gives no numbers.
    """
    if find_seeklet(teacher) is None:
        check_head(teacher, "teacher.path")
    head: Any = teacher.get_output_embeddings()
    vocabulary = min(num_shared or head.weight.shape[0], head.weight.shape[0])
    if settings.num_tokens > vocabulary:
        raise RecipeError(
            f"num_tokens is {settings.num_tokens:,}; allowed: at most the teacher's {vocabulary:,} logits"
        )
    keys = _checked_keys(rows, teacher.get_input_embeddings())
    manifest = make_manifest(teacher, tokenizer, keys, settings, public_name(name), revision, vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    done = _done(folder, manifest)
    reader = _Reader(teacher.eval(), tokenizer, settings, vocabulary, on_tokens)
    for number, first in enumerate(range(0, len(keys), settings.rows_per_shard)):
        if first not in done:
            last = min(first + settings.rows_per_shard, len(keys))
            done[first] = _write_shard(folder, number, first, reader([dict(rows[i]) for i in range(first, last)]))
            _with(manifest, done).write(folder)
    return _with(manifest, done)


class _Reader:
    """The teacher at work."""

    def __init__(
        self,
        teacher: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: TopKSettings,
        vocabulary: int,
        on_tokens: Callable[[int], None],
    ):
        self._teacher, self._settings, self._vocabulary, self._on_tokens = teacher, settings, vocabulary, on_tokens
        padding: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._collate = TokenCollator(int(padding or 0), joins_packed_rows=False)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the tensors of a shard."""
        # Rows of about the same length together.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(rows)
        size = self._settings.batch_size
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            for index, pair in zip(chosen, self._read([rows[i] for i in chosen]), strict=True):
                found[index] = pair
        tokens, log_probs = (torch.cat(part) for part in zip(*found, strict=True))
        lengths = torch.tensor([0, *(len(pair[0]) for pair in found)])
        keys = torch.tensor([_signed(row_key(row)) for row in rows])
        return {"tokens": tokens, "log_probs": log_probs, "offsets": lengths.cumsum(0), "keys": keys}

    @torch.no_grad()
    def _read(self, rows: list[dict[str, Any]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return tokens (N, K) and log-probabilities (N, K + 1) of each row."""
        batch = {name: value.to(self._teacher.device) for name, value in self._collate(rows).items()}
        kept = shift_left(batch["labels"], 1, IGNORE_INDEX) != IGNORE_INDEX
        mask, positions = batch.get("attention_mask"), batch.get("position_ids")
        hidden = run_teacher(self._teacher, batch["input_ids"], mask, positions)[kept]
        head = self._teacher.get_output_embeddings()
        chunks = [self._most_likely(head, chunk) for chunk in hidden.split(MIN_CHUNK_ROWS)]
        tokens, log_probs = (torch.cat(part).cpu() for part in zip(*chunks, strict=True))
        if not torch.isfinite(log_probs[:, :-1]).all():
            raise TrainingError(
                "the teacher's probabilities are not finite, and nothing can be learned from them; load it in bfloat16 "
                "or float32 (teacher.dtype)"
            )
        self._on_tokens(len(tokens))
        lengths = kept.sum(1).tolist()
        return list(zip(tokens.split(lengths), log_probs.split(lengths), strict=True))

    def _most_likely(self, head: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p = log_softmax(head(hidden)[:, : self._vocabulary], self._settings.temperature)
        tokens = log_p.topk(self._settings.num_tokens).indices
        buckets = bucket_log_probs(log_p, tokens)
        return tokens.to(torch.uint16 if self._vocabulary <= SHORT else torch.int32), buckets.to(torch.float16)


def _checked_keys(rows: Sequence[dict[str, Any]] | Dataset, embedding: Any) -> list[str]:
    """Return the key of each row."""
    num_known, keys = embedding.weight.shape[0], []
    arrays: Any = rows.with_format("numpy") if isinstance(rows, Dataset) else rows
    for number in range(len(rows)):
        row: dict[str, Any] = arrays[number]
        if not np.any(row["assistant_masks"][1:]):
            raise DataError(f"row {number:,} has nothing to learn: no token of it is marked; allowed: at least one")
        if (largest := np.max(row["input_ids"])) >= num_known:
            raise DataError(
                f"row {number:,} has token {largest:,}, and the teacher knows {num_known:,}; allowed: rows that the "
                "teacher's own tokenizer has made"
            )
        keys.append(row_key(row))
    return keys


def _done(folder: Path, manifest: TopKManifest) -> dict[int, Shard]:
    """Return the whole shards that are there, by their first row."""
    if not (folder / MANIFEST).exists():
        return {}
    there = read_manifest(folder)
    there.check_same(manifest, folder)
    found = [shard for shard in there.shards if (folder / shard.file).exists()]
    for shard in found:
        check_shard(folder, shard)
    return {shard.first: shard for shard in found}


def _write_shard(folder: Path, number: int, first: int, tensors: dict[str, torch.Tensor]) -> Shard:
    path = folder / f"shard-{number:05d}.safetensors"
    try:
        with replaced_file(path) as beside:
            save_file(tensors, beside)
            sha256 = sha256_of(beside)
    # safetensors' own error where a disk is full.
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: saving failed: {error}; what is there is whole, and the teacher goes on behind it once there is "
            "room"
        ) from error
    num_rows, num_tokens = len(tensors["keys"]), len(tensors["tokens"])
    return Shard(file=path.name, first=first, num_rows=num_rows, num_tokens=num_tokens, sha256=sha256)


def _with(manifest: TopKManifest, shards: dict[int, Shard]) -> TopKManifest:
    return replace(manifest, shards=tuple(shards[first] for first in sorted(shards)))


def _signed(key: str) -> int:
    return int.from_bytes(bytes.fromhex(key), "big", signed=True)
