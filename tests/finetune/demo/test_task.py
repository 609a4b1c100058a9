"""Traces agree with Python's own sums and reasoning-gym's answers, and no split shares a problem with another."""

from typing import Any

import pytest

from seeklet.finetune.demo import task as tasks
from seeklet.finetune.demo.task import LARGEST_TOTAL, SPLIT_SPACING, ChainSums, checks_trace, thinks, write_reasoning

TASK = ChainSums(seed=3, num_test=400)
ROW: dict[str, Any] = {"prompt": [{"role": "user", "content": "4-9+2"}], "answer": "-3"}


def test_reasoning_is_written_out_step_by_step() -> None:
    assert write_reasoning("4-9+2+3") == "4-9=-5;-5+2=-3;-3+3=0"


def test_every_step_of_every_trace_is_right() -> None:
    for problem in TASK.train(500):
        steps = problem.reasoning.split(";")
        for step in steps:
            left, right = step.split("=")
            # Python itself as the reference; the text consists of digits and signs only.
            assert eval(left) == int(right)
        assert all(0 <= int(step.split("=")[1]) <= LARGEST_TOTAL for step in steps)
        assert eval(problem.prompt) == int(steps[-1].split("=")[1]) == int(problem.answer)
        assert problem.answer == problem.entry["answer"] and len(steps) == problem.terms - 1


@pytest.mark.parametrize(
    ("completion", "thinking", "traced"),
    [
        ("<think>4-9=-5;-5+2=-3</think>-3", 1, 1),
        # The answer is judged by another reward.
        ("<think>4-9=-5;-5+2=-3</think>5", 1, 1),
        ("<think>4-9=5;5+2=-3</think>-3", 1, 0),
        ("<think>4-9=-5</think>-3", 1, 0),
        ("<think></think>-3", 0, 0),
        ("-3", 0, 0),
        ("", 0, 0),
    ],
)
def test_rewards(completion: str, thinking: float, traced: float) -> None:
    assert (thinks(completion, ROW), checks_trace(completion, ROW)) == (thinking, traced)


def test_splits_share_no_problem() -> None:
    test = {problem.prompt for problem in TASK.test}
    train = {problem.prompt for problem in TASK.train(20_000)}
    assert (len(test), len(train)) == (400, 20_000)
    assert not test & train


def test_a_training_problem_that_the_generator_repeats_from_the_test_set_is_left_out() -> None:
    drawn = TASK.train(1)[0]
    task = ChainSums(seed=3, num_test=0)
    task._held_out = {drawn.prompt}
    assert drawn.prompt not in {problem.prompt for problem in task.train(5_000)}


def test_neighbouring_seeds_share_no_items(monkeypatch: pytest.MonkeyPatch) -> None:
    # Item i of seed s is drawn from Random(s + i): the starts of all splits of all seeds must lie far apart.
    starts: list[int] = []
    create = tasks.reasoning_gym.create_dataset
    monkeypatch.setattr(
        tasks.reasoning_gym, "create_dataset", lambda *a, **kw: starts.append(kw["seed"]) or create(*a, **kw)
    )
    for seed in range(3):
        ChainSums(seed, num_test=1).train(1)
    assert len(starts) == 6
    gaps = [b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)]
    assert min(gaps) >= SPLIT_SPACING
