"""Rewards: pure functions of a completion and its row, by plain name, and sets of them for reinforcement learning."""

from .completion import Reward, Row
from .registry import KINDS, make_reward
from .reward_set import RewardFunction, RewardSet, RewardSettings, Scored

__all__ = [
    "KINDS",
    "Reward",
    "RewardFunction",
    "RewardSet",
    "RewardSettings",
    "Row",
    "Scored",
    "make_reward",
]
