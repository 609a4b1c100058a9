"""How many optimizer steps a run takes, counted as transformers' Trainer counts them."""

import math
from dataclasses import dataclass

from transformers import TrainingArguments


@dataclass(frozen=True)
class Steps:
    """How often the optimizer steps, and on how many sequences each time."""

    total: int
    per_epoch: int
    sequences: int
    """Of one step: of all processes, and over gradient accumulation."""


def count_steps(config: TrainingArguments, num_rows: int, num_processes: int = 1) -> Steps:
    """Return the steps of training on `num_rows` sequences an epoch.

    What does not fill a batch, or a step, at the end of an epoch is a smaller one. For 10 rows, batches of 4 and
    accumulation over 2: batches of 4, 4 and 2, so 2 steps an epoch.
    """
    per_batch = config.per_device_train_batch_size * num_processes
    batches = num_rows // per_batch if config.dataloader_drop_last else math.ceil(num_rows / per_batch)
    per_epoch = max(1, math.ceil(batches / config.gradient_accumulation_steps))
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)
    return Steps(total, per_epoch, per_batch * config.gradient_accumulation_steps)
