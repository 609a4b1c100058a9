"""The merged model in stock transformers, in a fresh process: the same losses as the adapter's, and a chat with it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from seeklet.modeling import SeekletError

from ..evaluation.likelihood import Scored

# Weights merged in float32 and products summed in another order: a row's loss of some 100 nats moved by 1e-4 at most.
MAX_LOSS_DIFFERENCE = 1e-2


class StockError(SeekletError, RuntimeError):
    """Stock transformers could not load the merged model."""


@dataclass(frozen=True)
class StockChat:
    """What stock transformers made of the merged model."""

    model_class: str
    transformers: str
    missing_tensors: list[str]
    unexpected_tensors: list[str]
    seeklet_imported: bool
    losses: list[float]
    """Of each row, summed over its answer, in nats."""
    chats: list[list[dict[str, str]]]

    def largest_difference(self, expected: Sequence[float]) -> float:
        """Return the largest difference between these losses and what the adapter on its base had."""
        return max(abs(loss - other) for loss, other in zip(self.losses, expected, strict=True))


def chat_in_stock(
    model: Path, rows: Sequence[Scored], system: str, questions: Sequence[str], max_new_tokens: int
) -> StockChat:
    """Return the losses of `rows` and the answers to `questions`, by stock transformers in a fresh process.

    Raises:
        StockError: the process ended with an error; the message ends with its last line.
    """
    request = {
        "rows": [[list(map(int, row.input_ids)), list(map(int, row.assistant_mask))] for row in rows],
        "system": system,
        "questions": list(questions),
        "max_new_tokens": max_new_tokens,
        "threads": torch.get_num_threads(),
    }
    # Read from standard input, so that neither this package's folder nor the caller's is on the import path.
    script = Path(__file__).with_name("stock_chat.py").read_text(encoding="utf-8")
    with TemporaryDirectory() as scratch:
        sent, received = Path(scratch, "request.json"), Path(scratch, "reply.json")
        sent.write_text(json.dumps(request), encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-", str(model.resolve()), str(sent), str(received)],
            input=script,
            capture_output=True,
            encoding="utf-8",
            cwd=scratch,
        )
        if process.returncode != 0:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise StockError(f"stock transformers could not load {model}: {last}")
        return StockChat(**json.loads(received.read_text(encoding="utf-8")))
