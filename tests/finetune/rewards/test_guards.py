"""Warnings of runs that idle."""

import logging
import math

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from seeklet.finetune.rewards import RewardSet, RewardSettings
from seeklet.finetune.rewards.guards import (
    RewardGuard,
    entropy_finding,
    mean_reward_finding,
    no_number_finding,
    no_variance_finding,
    watched_ranges,
)


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ([0.09] * 10, "9% of its range from 0 to 1: the model hardly ever succeeds"),
        ([0.96] * 10, "96% of its range from 0 to 1: there is hardly anything left to learn"),
        ([0.5] * 10, None),
        # The mean over the first ten, whatever comes later.
        ([0.0] * 5 + [0.3] * 5 + [0.0] * 90, None),
        ([0.0] * 9, None),
        ([0.1] * 10, None),
    ],
)
def test_mean_of_the_first_steps(means: list[float], said: str | None) -> None:
    finding = mean_reward_finding("rewards/maths/mean", means, 0.0, 1.0, 10)
    assert finding is None if said is None else said in (finding or "")


def test_the_range_may_begin_below_zero() -> None:
    # From -1 to 0, -0.97 is 3 %.
    assert "3% of its range from -1 to 0" in (mean_reward_finding("reward", [-0.97] * 2, -1.0, 0.0, 2) or "")
    assert mean_reward_finding("reward", [0.0], 0.0, 0.0, 1) is None


def test_groups_without_variance() -> None:
    assert "75% of the groups in the last 2" in (no_variance_finding([0.0, 0.7, 0.8], 2) or "")
    assert no_variance_finding([0.9, 0.9, 0.1, 0.9], 2) is None
    assert no_variance_finding([0.9], 2) is None


def test_entropy() -> None:
    assert "from 0.5 to 0.04" in (entropy_finding([0.6, 0.4, 0.3, 0.05, 0.03], 2) or "")
    # To a tenth exactly is not below it.
    assert entropy_finding([0.5, 0.5, 0.05, 0.05], 2) is None
    assert entropy_finding([0.5, 0.01, 0.01], 2) is None


def test_rewards_that_are_no_number() -> None:
    for value in (math.nan, None):
        log = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": value}, {"step": 3, "loss": 1.0}]
        assert no_number_finding(log, {"reward": (0, 1)}) == (
            "reward was no number at step 2: it has nothing to say about any row of that step"
        )
    log = [{"step": 1, "reward": 0.5}, {"step": 3, "loss": 1.0}]
    assert no_number_finding(log, {"reward": (0, 1)}) is None


def test_what_is_watched_says_whether_tasks_are_done() -> None:
    mixed = RewardSet([RewardSettings("exact"), RewardSettings("format")])
    assert watched_ranges(mixed) == {"rewards/exact/mean": (0.0, 1.0)}
    overlong = RewardSettings("overlong", 2.0, settings={"max_tokens": 10, "buffer_tokens": 5})
    # Format from 0 to 1, over-long twice from -1 to 0.
    assert watched_ranges(RewardSet([RewardSettings("format"), overlong])) == {"reward": (-2.0, 1.0)}
    turned = RewardSet([RewardSettings("format", -1.0)])
    assert watched_ranges(turned) == {"reward": (-1.0, 0.0)}


def test_each_warning_comes_once(tmp_path: object, caplog: pytest.LogCaptureFixture) -> None:
    guard = RewardGuard(RewardSet([RewardSettings("exact")]), first_steps=2, recent_steps=2)
    arguments, control = TrainingArguments(output_dir=str(tmp_path)), TrainerControl()
    state = TrainerState()
    told = []
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            state.global_step = step
            state.log_history.append(
                {
                    "step": step,
                    "rewards/exact/mean": 0.01,
                    "frac_reward_zero_std": 0.9,
                    "entropy": 0.5 if step < 3 else 0.01,
                    "eval_reward": 0.5,
                }
            )
            guard.on_log(arguments, state, control)
            told.append(len(caplog.records))
    # Two at the second step, entropy at the fourth.
    assert told == [0, 2, 2, 3, 3]
    assert guard.warned == ["mean of rewards/exact/mean", "variance", "entropy"]
    assert (
        caplog.records[0].getMessage().startswith("step 2: rewards/exact/mean was 0.01 over the first 2 logged steps")
    )


def test_only_the_main_process_warns(tmp_path: object) -> None:
    guard = RewardGuard(RewardSet([RewardSettings("exact")]), first_steps=1)
    state = TrainerState(is_world_process_zero=False)
    state.log_history.append({"rewards/exact/mean": 0.0})
    guard.on_log(TrainingArguments(output_dir=str(tmp_path)), state, TrainerControl())
    assert guard.warned == []
