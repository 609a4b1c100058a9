"""Stopping when the held-out loss no longer falls."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EarlyStopping(TrainerCallback):
    """Stops training after `patience` evaluations in a row without a better held-out loss.

    It looks at the whole log each time and remembers nothing, so a run that is resumed stops where it would have.
    """

    def __init__(self, patience: int, min_improvement: float = 0.0):
        """Count a loss as better that is lower than the best before by more than `min_improvement`."""
        self.patience = patience
        self.min_improvement = min_improvement

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop a run that goes on from where it had been stopped."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where the evaluations say so."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if since_best(losses, self.min_improvement) >= self.patience:
            control.should_training_stop = True


def since_best(losses: Sequence[float], min_improvement: float = 0.0) -> int:
    """Return how many losses have come since the last one that was better than all before it.

    Of (3.0, 2.0, 2.5, 1.9) it is 0 without, and 2 with a `min_improvement` of 0.5.
    """
    best, since = float("inf"), 0
    for loss in losses:
        since += 1
        if loss < best - min_improvement:
            best, since = loss, 0
    return since
