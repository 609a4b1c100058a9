"""Several rewards with their weights: as functions that TRL's GRPOTrainer takes, and to score completions directly."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, RewardError
from .completion import OPENED, PROMPT, TOKEN_IDS, Reward, Row, begins_in_reasoning, text_of
from .failures import Failures
from .registry import make_reward
from .settings import RewardSettings

# Each has a process of 200 MB beside it, or the memory that code may use.
MAX_THREADS = 16


@dataclass(frozen=True)
class Scored:
    """What a completion was given: the weighted sum, each reward by name, and why some could not be had.

    `total` is None, as the reward is in `parts`, where no reward has anything to say about the row.
    """

    total: float | None
    parts: dict[str, float | None]
    reasons: dict[str, str]


class RewardSet:
    """Rewards by name. `functions` and `weights` go to GRPOTrainer and `GRPOConfig.reward_weights` as they are.

    A reward that raises, or returns what is no finite number, scores the sample `on_error`, with the reason told; where
    too many do, a TrainingError ends the run. A reward that returns None is left out for that sample, as TRL does.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSettings],
        *,
        on_error: float = 0.0,
        max_failed_share: float = 0.5,
        window: int = 256,
        opened: bool | None = None,
        failures_file: Path | None = None,
        num_threads: int | None = None,
    ):
        """Make the rewards.

        Args:
            rewards: at least one; two of a kind need names.
            on_error: the score of a sample that a reward cannot score.
            max_failed_share: of the last `window` samples of a reward that it may fail to score.
            window: see `max_failed_share`; the first 32 samples are waited for.
            opened: whether the chat template ends the prompt with `<think>`, so that completions begin inside the
                reasoning; None looks at prompts that are texts, and takes it that templates don't.
            failures_file: where each failure is written, a line of JSON each.
            num_threads: for rewards that wait for processes; None: one for each CPU this process has for itself,
                up to 16.

        Raises:
            RecipeError: see `make_reward`; or a weight is no number, or a name is there twice.
        """
        if not rewards:
            raise RecipeError("rewards: none given; allowed: at least one")
        self.names = [each.name or each.kind for each in rewards]
        if twice := {name for name in self.names if self.names.count(name) > 1}:
            raise RecipeError(f'rewards: "{min(twice)}" is there twice; give each a name of its own')
        for index, each in enumerate(rewards):
            if not math.isfinite(each.weight):
                raise RecipeError(f"rewards[{index}].weight is {each.weight}; allowed: a finite number")
        if not math.isfinite(on_error):
            raise RecipeError(f"on_error is {on_error}; allowed: a finite number")
        self.weights = [float(each.weight) for each in rewards]
        self.rewards: list[Reward] = [
            make_reward(each.kind, each.settings, f"rewards[{index}]") for index, each in enumerate(rewards)
        ]
        self.on_error, self.opened = float(on_error), opened
        self.failures = Failures(max_failed_share, window, failures_file)
        self.num_threads = num_threads or _count_own_cpus()

    @property
    def functions(self) -> list["RewardFunction"]:
        """The reward functions for GRPOTrainer, in the order of `weights`."""
        return [RewardFunction(self, index) for index in range(len(self.rewards))]

    def score(self, completions: Sequence[Any], rows: Sequence[Row], step: int | None = None) -> list[Scored]:
        """Return what each completion, text or messages, is given on its row.

        A row's `prompt` and `completion_ids` are what some rewards need besides the columns of the data.

        Raises:
            TrainingError: too many could not be scored.
        """
        texts = [text_of(completion) for completion in completions]
        by_reward = [self._score_one(index, texts, rows, step) for index in range(len(self.rewards))]
        made = []
        for sample in range(len(texts)):
            scores = {name: by_reward[index][0][sample] for index, name in enumerate(self.names)}
            reasons = {name: by_reward[index][1][sample] for index, name in enumerate(self.names)}
            known = [w * s for w, s in zip(self.weights, scores.values(), strict=True) if s is not None]
            told = {name: reason for name, reason in reasons.items() if reason is not None}
            made.append(Scored(sum(known) if known else None, scores, told))
        return made

    def score_reward(
        self, index: int, completions: Sequence[Any], rows: Sequence[Row], step: int | None = None
    ) -> list[float | None]:
        """Return the scores of one reward.

        Raises:
            TrainingError: too many could not be scored.
        """
        return self._score_one(index, [text_of(completion) for completion in completions], rows, step)[0]

    def _score_one(
        self, index: int, texts: list[str], rows: Sequence[Row], step: int | None
    ) -> tuple[list[float | None], list[str | None]]:
        reward, name = self.rewards[index], self.names[index]
        rows = [self._with_opened(row) for row in rows]
        if getattr(reward, "waits", False) and len(texts) > 1 and self.num_threads > 1:
            with ThreadPoolExecutor(min(self.num_threads, len(texts))) as pool:
                pairs = list(pool.map(_score_safely, [reward] * len(texts), texts, rows))
        else:
            pairs = [_score_safely(reward, text, row) for text, row in zip(texts, rows, strict=True)]
        reasons = [reason for _, reason in pairs]
        self.failures.note(name, reasons, texts, step)
        return [self.on_error if reason is not None else score for score, reason in pairs], reasons

    def _with_opened(self, row: Row) -> Row:
        opened = begins_in_reasoning(row.get(PROMPT)) if self.opened is None else self.opened
        return {**row, OPENED: opened}


class RewardFunction:
    """One reward as TRL calls it: with lists of prompts, completions, their tokens, and a list for each column."""

    def __init__(self, rewards: RewardSet, index: int):
        """Score with the reward at `index` of a set."""
        self._rewards, self._index = rewards, index
        # What TRL logs the reward by.
        self.__name__ = rewards.names[index]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        trainer_state: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return a score for each completion, or None where the reward has nothing to say about its row.

        Raises:
            TrainingError: too many could not be scored. Other processes of the run end with the one that says so.
        """
        named = {key: values for key, values in columns.items() if _is_column(values, len(prompts))}
        rows = [{key: values[sample] for key, values in named.items()} for sample in range(len(prompts))]
        for sample, row in enumerate(rows):
            row[PROMPT] = prompts[sample]
            if completion_ids is not None:
                row[TOKEN_IDS] = completion_ids[sample]
        step = getattr(trainer_state, "global_step", None)
        scores = self._rewards.score_reward(self._index, completions, rows, step)
        if log_metric is not None:
            log_metric(f"rewards/{self.__name__}/failed", self._rewards.failures.share(self.__name__))
        return scores


def _score_safely(reward: Reward, text: str, row: Row) -> tuple[float | None, str | None]:
    """Return a score, or None and the reason why there is none."""
    try:
        score = reward(text, row)
    except RewardError as error:
        return None, str(error)
    # Code of users and of other libraries, on text of any kind: a sample may cost its score, never the run.
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    if score is None:
        return None, None
    try:
        number = float(score)
    except (TypeError, ValueError):
        return None, f"it returned {str(score)[:60]!r}, which is no number"
    return (number, None) if math.isfinite(number) else (None, f"it returned {number}")


def _is_column(values: Any, length: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == length


def _count_own_cpus() -> int:
    """Return the number of CPUs of this process's share, where several train on a machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
