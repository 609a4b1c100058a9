"""Caches of nano teachers, and a process that writes one and is killed in the middle."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from seeklet.finetune.distill.settings import TopKSettings
from seeklet.finetune.distill.topk_files import TopKManifest
from seeklet.finetune.distill.topk_writer import write_topk
from tests.finetune.characters import build_tokenizer
from tests.finetune.distill.on_policy import SIZES, build_teacher
from tests.finetune.test_sft_trainer import LENGTHS
from tests.modeling.nano import draw_tokens

TOP = 5


def make_rows(packed: bool = False, lengths: tuple[int, ...] = LENGTHS) -> Dataset:
    """Return rows of the demo's tokens, of which all but the first two of each conversation are learned."""
    tokens = (draw_tokens(len(lengths), max(lengths)) % (SIZES["vocab_size"] - 3) + 3).tolist()
    rows = [
        {"input_ids": row[:length], "assistant_masks": [0, 0] + [1] * (length - 2)}
        for row, length in zip(tokens, lengths, strict=True)
    ]
    if packed:
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        rows = [
            {name: a[name] + b[name] for name in a} | {"seq_lengths": [len(a["input_ids"]), len(b["input_ids"])]}
            for a, b in pairs
        ]
        # A first token that is marked has nothing in front of it that may predict it.
        rows[0]["assistant_masks"][rows[0]["seq_lengths"][0]] = 1
    return Dataset.from_list(rows)


def write(folder: Path, rows: Dataset | None = None, teacher: Any = None, **settings: Any) -> TopKManifest:
    """Write a cache as a recipe would, three rows to a shard."""
    options: dict[str, Any] = {
        name: settings.pop(name) for name in ("on_tokens", "num_shared", "name") if name in settings
    }
    teacher = build_teacher() if teacher is None else teacher
    fields = {"num_tokens": TOP, "rows_per_shard": 3, "batch_size": 2} | settings
    rows = make_rows() if rows is None else rows
    return write_topk(
        teacher, build_tokenizer(), rows, folder, TopKSettings(**fields), **{"name": "org/teacher", **options}
    )


def write_and_die(folder: Path, batches: int) -> None:
    """Write a cache until so many batches were read, and be killed then."""
    seen = 0

    def count(_: int) -> None:
        nonlocal seen
        seen += 1
        if seen == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    write(folder, on_tokens=count)


if __name__ == "__main__":
    write_and_die(Path(sys.argv[1]), int(sys.argv[2]))
