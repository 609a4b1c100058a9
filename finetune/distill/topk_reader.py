"""Reads a teacher's most likely tokens back, row by row, beside the rows they belong to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, RecipeError
from .topk_files import (
    MANIFEST,
    Shard,
    TopKManifest,
    check_shard,
    fingerprint_tokenizer,
    read_manifest,
    row_key,
)

# The column that says which row of the cache a row of the data is.
TEACHER_ROW = "teacher_row"


class TopKCache:
    """A cache in `folder`, of which only what is asked for is read; made anew in every process that reads."""

    def __init__(self, folder: str | Path):
        """Open a cache.

        Raises:
            DataError: there is none, or it is not complete, or a file of it is damaged.
        """
        self.folder = Path(folder).expanduser()
        self.manifest: TopKManifest = read_manifest(self.folder)
        for shard in self.manifest.shards:
            check_shard(self.folder, shard)
        if not self.manifest.is_complete:
            there = sum(shard.num_rows for shard in self.manifest.shards)
            raise DataError(
                f"{self.folder / MANIFEST}: {there:,} of {self.manifest.num_rows:,} rows are there; let the teacher "
                "run again, which makes only what is missing"
            )
        self._files: dict[int, tuple[Any, torch.Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, which no other process can use."""
        return {**vars(self), "_files": {}}

    def read(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens, int64 (N, K), and log-probabilities, fp32 (N, K + 1), of the N labelled positions of a row."""
        shard = row // self.manifest.rows_per_shard
        if shard not in self._files:
            self._files[shard] = self._open(self.manifest.shards[shard])
        file, offsets = self._files[shard]
        at = row - self.manifest.shards[shard].first
        start, end = offsets[at : at + 2].tolist()
        return file.get_slice("tokens")[start:end].long(), file.get_slice("log_probs")[start:end].float()

    def check_student(self, tokenizer: PreTrainedTokenizerBase, num_logits: int) -> None:
        """Check that a student can learn from this.

        Raises:
            RecipeError: its tokens are not the teacher's.
        """
        manifest = self.manifest
        if fingerprint_tokenizer(tokenizer) != manifest.tokenizer_sha256:
            raise RecipeError(
                f"{self.folder} holds tokens of {manifest.teacher}, which are not those of the student "
                f"({tokenizer.name_or_path or 'without a name'}, {len(tokenizer):,} tokens); allowed: a student with "
                "the teacher's tokenizer. Train others on the teacher's texts"
            )
        if num_logits < manifest.vocabulary:
            raise RecipeError(
                f"{self.folder} holds probabilities over {manifest.vocabulary:,} logits of {manifest.teacher}, and the "
                f"student has {num_logits:,}; allowed: a cache over no more than the student has (num_shared)"
            )

    def attach(self, rows: Dataset) -> Dataset:
        """Return `rows` with the column by which each finds what is here of it.

        Raises:
            DataError: the rows are not those that the teacher has read.
        """
        there = self._keys()
        if len(rows) != len(there):
            raise DataError(
                f"{self.folder} is of {len(there):,} rows, and the data has {len(rows):,}; allowed: the rows that the "
                "teacher has read, in their order"
            )
        arrays: Any = rows.with_format("numpy")
        for number, key in enumerate(there):
            if row_key(arrays[number]) != key:
                raise DataError(
                    f"row {number:,} is not the one that the teacher has read for {self.folder}; allowed: the same "
                    "rows in the same order, made with the same template and the same settings"
                )
        return rows.add_column(TEACHER_ROW, list(range(len(rows))))  # pyright: ignore[reportCallIssue]

    def _keys(self) -> list[str]:
        numbers: list[int] = []
        for shard in self.manifest.shards:
            with safe_open(self.folder / shard.file, "pt") as file:
                numbers += file.get_tensor("keys").tolist()
        return [number.to_bytes(8, "big", signed=True).hex() for number in numbers]

    def _open(self, shard: Shard) -> tuple[Any, torch.Tensor]:
        path = self.folder / shard.file
        try:
            file = safe_open(path, "pt")
            return file, file.get_tensor("offsets")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


@dataclass(frozen=True)
class TopKCollator:
    """Adds to a batch what the cache holds of its rows: `teacher_tokens` (N, K), `teacher_log_probs` (N, K + 1).

    Row by row, in order of positions; rows without the column, such as held-out ones, are left as they are.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    cache: TopKCache

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        batch = self.collate(rows)
        if TEACHER_ROW in rows[0]:
            found = [self.cache.read(row[TEACHER_ROW]) for row in rows]
            tokens, log_probs = (torch.cat(part) for part in zip(*found, strict=True))
            batch |= {"teacher_tokens": tokens, "teacher_log_probs": log_probs}
        return batch
