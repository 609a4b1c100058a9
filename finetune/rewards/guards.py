"""Warnings of what makes reinforcement learning idle: rewards all low or all high, groups all alike, no more choice.

Not among the names of the package: it imports transformers' trainer and with it PEFT, which a recipe is read without.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .reward_set import RewardSet

logger = logging.getLogger(__name__)
# As TRL's GRPOTrainer logs them.
NO_VARIANCE, ENTROPY = "frac_reward_zero_std", "entropy"


class RewardGuard(TrainerCallback):
    """Warns once of each thing that makes a run of GRPO idle; in the main process, from what the trainer logs.

    It looks at the whole log each time, so a run that is resumed knows its first steps.
    """

    def __init__(self, rewards: RewardSet, first_steps: int = 10, recent_steps: int = 10):
        """Watch the rewards of a set that say whether a task was done; where none does, their weighted sum."""
        self.ranges = watched_ranges(rewards)
        self.first_steps, self.recent_steps = first_steps, recent_steps
        self.warned: list[str] = []

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the log, and warn of what is new."""
        if not state.is_world_process_zero:
            return
        for kind, finding in self.find(state.log_history).items():
            if kind not in self.warned:
                self.warned.append(kind)
                logger.warning("step %d: %s", state.global_step, finding)

    def find(self, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return what there is to say about a log, by a short name for each finding."""
        findings = {
            f"mean of {key}": mean_reward_finding(key, series(log, key), *limits, self.first_steps)
            for key, limits in self.ranges.items()
        }
        findings["variance"] = no_variance_finding(series(log, NO_VARIANCE), self.recent_steps)
        findings["entropy"] = entropy_finding(series(log, ENTROPY), self.recent_steps)
        findings["no number"] = no_number_finding(log, self.ranges)
        return {kind: finding for kind, finding in findings.items() if finding}


def watched_ranges(rewards: RewardSet) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each logged mean that says whether tasks are done."""
    each = zip(rewards.names, rewards.rewards, strict=True)
    watched = {f"rewards/{name}/mean": (reward.lowest, reward.highest) for name, reward in each if reward.verifies}
    if watched:
        return watched
    ends = [
        sorted((weight * reward.lowest, weight * reward.highest))
        for weight, reward in zip(rewards.weights, rewards.rewards, strict=True)
    ]
    return {"reward": (sum(low for low, _ in ends), sum(high for _, high in ends))}


def series(log: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the finite values of a key, in order; entries of evaluation have it under another name."""
    values = (entry[key] for entry in log if key in entry)
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def mean_reward_finding(name: str, means: Sequence[float], lowest: float, highest: float, num_steps: int) -> str | None:
    """Return a warning where the mean over the first steps is below 10 % or above 95 % of the range, else None."""
    if len(means) < num_steps or highest <= lowest:
        return None
    mean = fmean(means[:num_steps])
    share = (mean - lowest) / (highest - lowest)
    of_range = f"{share:.0%} of its range from {lowest:g} to {highest:g}"
    said = f"{name} was {mean:.3g} over the first {num_steps} logged steps, {of_range}"
    if share < 0.10:
        return (
            f"{said}: the model hardly ever succeeds, so there is hardly anything to learn from. Take easier prompts "
            "or a cold start, and look at some completions: a wrong column or template gives the same picture"
        )
    if share > 0.95:
        return (
            f"{said}: there is hardly anything left to learn. Take harder prompts, and check that the reward is strict"
        )
    return None


def no_variance_finding(shares: Sequence[float], num_steps: int) -> str | None:
    """Return a warning where, over the last steps, most groups had equal rewards throughout, else None."""
    if len(shares) < num_steps or (share := fmean(shares[-num_steps:])) <= 0.5:
        return None
    return (
        f"{share:.0%} of the groups in the last {num_steps} logged steps had the same reward throughout, which teaches "
        "nothing: take prompts of middling difficulty, more generations a prompt, or a higher temperature"
    )


def entropy_finding(entropies: Sequence[float], num_steps: int) -> str | None:
    """Return a warning where the entropy fell below a tenth of what it was at first, means over steps, else None."""
    if len(entropies) < 2 * num_steps:
        return None
    first, last = fmean(entropies[:num_steps]), fmean(entropies[-num_steps:])
    if last >= 0.1 * first:
        return None
    return (
        f"the entropy of the policy fell from {first:.3g} to {last:.3g}: it says nearly the same each time and "
        "explores no more. A lower learning rate, a higher upper clip (epsilon_high) or a KL term keeps it up"
    )


def no_number_finding(log: Sequence[Mapping[str, Any]], keys: Mapping[str, Any]) -> str | None:
    """Return a warning where the mean of a reward was no number in some step, else None."""
    for entry in log:
        for key in keys:
            # Trainer writes null for what is no number.
            if key in entry and (entry[key] is None or not math.isfinite(entry[key])):
                at = f" at step {entry['step']}" if "step" in entry else ""
                return f"{key} was no number{at}: it has nothing to say about any row of that step"
    return None
