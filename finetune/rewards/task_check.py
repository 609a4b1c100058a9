"""What reasoning-gym gives an answer. Runs in a process of its own: see `verifier_process`."""

from functools import cache
from typing import Any

import reasoning_gym


def warm_up() -> None:
    """Do what is slow the first time: nothing."""


def check(request: dict[str, Any]) -> float:
    """Return the score of `answer` to the `entry` of a `task`."""
    return float(_scorer(request["task"])(answer=request["answer"], entry=request["entry"]))


@cache
def _scorer(task: str) -> Any:
    return reasoning_gym.get_score_answer_fn(task)
