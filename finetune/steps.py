"""How many optimizer steps a recipe takes, counted as transformers' Trainer counts them."""

import math
from dataclasses import dataclass

from .recipe import Recipe
from .trainer_fields import trainer_value


@dataclass(frozen=True)
class Steps:
    """How often the optimizer steps, and on how many sequences each time."""

    total: int
    per_epoch: int
    sequences: int
    """Of one step: of all processes, and over gradient accumulation."""


def count_steps(recipe: Recipe, num_rows: int, num_processes: int = 1) -> Steps:
    """Return the steps of training on `num_rows` sequences an epoch.

    What does not fill a batch, or a step, at the end of an epoch is a smaller one. For 10 rows, batches of 4 and
    accumulation over 2: batches of 4, 4 and 2, so 2 steps an epoch.
    """
    per_batch = int(trainer_value(recipe, "per_device_train_batch_size")) * num_processes
    accumulation = int(trainer_value(recipe, "gradient_accumulation_steps"))
    drop_last = bool(trainer_value(recipe, "dataloader_drop_last"))
    batches = num_rows // per_batch if drop_last else math.ceil(num_rows / per_batch)
    per_epoch = max(1, math.ceil(batches / accumulation))
    max_steps = int(trainer_value(recipe, "max_steps"))
    total = max_steps if max_steps > 0 else math.ceil(float(trainer_value(recipe, "num_train_epochs")) * per_epoch)
    return Steps(total, per_epoch, per_batch * accumulation)
