"""The log of a run as a file: one JSON object a line, on disk as soon as it is known."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .atomic_files import write_text

Entry = dict[str, Any]


class MetricsFile(TrainerCallback):
    """Appends each entry of Trainer's log to a file; in the main process only.

    An entry has `step` and what was logged: see `read_metrics`. Numbers that JSON has no words for become null.
    """

    def __init__(self, path: Path):
        """Write to `path`, which may hold the earlier part of a run that goes on."""
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the entry.

        Raises:
            OSError: it cannot be written.
        """
        if not state.is_world_process_zero or not logs:
            return
        line = json.dumps({"step": state.global_step} | {key: _plain(value) for key, value in logs.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_metrics(path: Path) -> list[Entry]:
    """Return the entries of a metrics file, in order; a last line that was cut short is left out.

    Entries of training have `loss`, what is minimised, and `learning_rate`, `grad_norm`, `tokens_per_s`, `memory_gib`;
    with a mixture of experts also `lm_loss`, `mtp_loss`, `balance_loss` and `expert_load_max_over_mean/layer_N`. Those
    of validation have `eval_loss`; the last one of a run has `train_runtime`.
    """
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def keep_until(path: Path, step: int) -> None:
    """Cut a metrics file down to what was logged up to `step`, from where a run goes on."""
    kept = [entry for entry in read_metrics(path) if entry["step"] <= step and "train_runtime" not in entry]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _plain(value: Any) -> Any:
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
