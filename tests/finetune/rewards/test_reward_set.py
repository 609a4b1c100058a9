"""Several rewards at once: their sum, their failures, and how a trainer calls them."""

import json
import logging
import math
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.rewards import RewardSet, RewardSettings

# Functions of these names are imported from this module.
HERE = "reward_functions_of_test"


@pytest.fixture(autouse=True)
def own_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import threading\n"
        "def value(completion, row):\n    return row['value']\n"
        "def length(completion, row):\n    return len(row['completion_ids'])\n"
        "def prompt(completion, row):\n    return float(row['prompt'] == 'Q' and completion == 'A')\n"
        "def fails(completion, row):\n"
        "    if row.get('bad'):\n        raise KeyError('gone')\n    return 0.5\n"
        "def opened(completion, row):\n    return float(row['reasoning_opened'])\n"
    )
    (tmp_path / f"{HERE}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def own(name: str, **settings: Any) -> RewardSettings:
    return RewardSettings("own", name=name, settings={"function": f"{HERE}:{name}"}, **settings)


def test_the_total_is_the_weighted_sum() -> None:
    rewards = RewardSet([RewardSettings("exact", 2.0), RewardSettings("format", 0.5)])
    assert (rewards.names, rewards.weights) == (["exact", "format"], [2.0, 0.5])
    rows = [{"answer": "4"}] * 4
    made = rewards.score(["<think>2</think>4", "4", "<think>2</think>5", "5"], rows)
    assert [each.total for each in made] == [2.5, 2.0, 0.5, 0.0]
    assert made[0].parts == {"exact": 1.0, "format": 1.0}
    assert made[0].reasons == {}


def test_two_of_a_kind_need_names() -> None:
    with pytest.raises(RecipeError, match=r'^rewards: "exact" is there twice; give each a name of its own$'):
        RewardSet([RewardSettings("exact"), RewardSettings("exact")])
    two = RewardSet([RewardSettings("exact"), RewardSettings("exact", name="city", settings={"column": "city"})])
    [made] = two.score(["Rome"], [{"answer": "Paris", "city": "Rome"}])
    assert made.parts == {"exact": 0.0, "city": 1.0}


def test_mistakes_are_named() -> None:
    with pytest.raises(RecipeError, match="at least one"):
        RewardSet([])
    with pytest.raises(RecipeError, match=r"^rewards\[1\]\.weight is nan; allowed: a finite number$"):
        RewardSet([RewardSettings("exact"), RewardSettings("format", math.nan)])
    with pytest.raises(RecipeError, match=r"^rewards\[1\]\.settings\.pattern: missing"):
        RewardSet([RewardSettings("exact"), RewardSettings("regex")])
    with pytest.raises(RecipeError, match="on_error is inf"):
        RewardSet([RewardSettings("exact")], on_error=math.inf)


def test_a_reward_that_raises_scores_the_sample_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "failures.jsonl"
    rewards = RewardSet([own("fails"), RewardSettings("exact")], on_error=-1.0, failures_file=file)
    rows = [{"answer": "4"}, {"answer": "4", "bad": True}]
    with caplog.at_level(logging.WARNING):
        good, bad = rewards.score(["4", "4"], rows, step=7)
    assert (good.total, good.reasons) == (1.5, {})
    assert (bad.total, bad.parts, bad.reasons) == (0.0, {"fails": -1.0, "exact": 1.0}, {"fails": "KeyError: 'gone'"})
    assert [record.getMessage() for record in caplog.records] == [
        "reward fails: a sample could not be scored: KeyError: 'gone'"
    ]
    [line] = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"step": 7, "reward": "fails", "reason": "KeyError: 'gone'", "completion": "4"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "it returned nan"),
        (-math.inf, "it returned -inf"),
        ("good", "it returned 'good', which is no number"),
        ([1], "it returned '[1]', which is no number"),
    ],
)
def test_what_is_no_finite_number_is_a_failure(value: Any, reason: str) -> None:
    [made] = RewardSet([own("value")]).score([""], [{"value": value}])
    assert (made.total, made.reasons) == (0.0, {"value": reason})


def test_none_leaves_a_reward_out() -> None:
    rewards = RewardSet([own("value", weight=3.0), own("length")])
    rows = [{"value": None, "completion_ids": [1, 2]}, {"value": True, "completion_ids": []}]
    assert [each.total for each in rewards.score(["", ""], rows)] == [2.0, 3.0]
    [made] = RewardSet([own("value")]).score([""], [{"value": None}])
    assert (made.total, made.parts, made.reasons) == (None, {"value": None}, {})


def test_too_many_failures_end_the_run() -> None:
    rewards = RewardSet([own("fails")], max_failed_share=0.5, window=64)

    def score(num_bad: int, num_good: int) -> None:
        rows = [{"bad": True}] * num_bad + [{}] * num_good
        rewards.score([""] * len(rows), rows, step=3)

    # 31 samples are too few to tell.
    score(31, 0)
    # 31 of 62, and then 33 of 64.
    score(0, 31)
    with pytest.raises(TrainingError) as caught:
        score(2, 0)
    assert str(caught.value) == (
        "reward fails at step 3: 52% of the last 64 samples could not be scored; allowed: 50%. "
        "The commonest reason now (2): KeyError: 'gone'"
    )
    # What was long ago is forgotten.
    healthy = RewardSet([own("fails")], max_failed_share=0.5, window=64)
    rows = [{"bad": True}] * 31
    healthy.score([""] * 31, rows)
    healthy.score([""] * 64, [{}] * 64)
    assert healthy.failures.share("fails") == 0.0


def test_a_column_that_is_missing_everywhere_ends_the_run_soon() -> None:
    rewards = RewardSet([RewardSettings("exact", settings={"column": "solution"})])
    with pytest.raises(
        TrainingError, match='the row has no "solution"; columns with a value: answer, reasoning_opened'
    ):
        rewards.score(["4"] * 32, [{"answer": "4"}] * 32)


def test_trainers_lists_become_rows() -> None:
    rewards = RewardSet([RewardSettings("exact"), own("length"), own("prompt")])
    exact, length, prompt = rewards.functions
    assert [each.__name__ for each in rewards.functions] == ["exact", "length", "prompt"]
    logged: list[tuple[str, float]] = []
    given = {
        "prompts": ["Q", "Q2"],
        "completions": ["A", "A"],
        "completion_ids": [[1, 2, 3], [1]],
        "answer": ["A", "B"],
        "trainer_state": SimpleNamespace(global_step=1),
        "log_extra": lambda *_: None,
        "log_metric": lambda name, value: logged.append((name, value)),
        # Not a column: of another length.
        "environments": [None],
    }
    assert exact(**given) == [1.0, 0.0]
    assert length(**given) == [3.0, 1.0]
    assert prompt(**given) == [1.0, 0.0]
    assert logged == [("rewards/exact/failed", 0.0), ("rewards/length/failed", 0.0), ("rewards/prompt/failed", 0.0)]


def test_conversations_are_read_too() -> None:
    [exact] = RewardSet([RewardSettings("exact")]).functions
    prompts = [[{"role": "user", "content": "2 + 2?"}]] * 4
    completions = [
        [{"role": "assistant", "content": "<think>2</think>4"}],
        [{"role": "assistant", "reasoning_content": "4?", "content": "5"}],
        # The last of the assistant's messages counts.
        [
            {"role": "assistant", "content": "5", "tool_calls": []},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
        ],
        [{"role": "assistant", "content": None}],
    ]
    assert exact(prompts, completions, answer=["4"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_whether_the_prompt_has_opened_the_reasoning() -> None:
    by_prompt = RewardSet([own("opened")]).functions[0]
    assert by_prompt(["Why?<think>\n", "Why?"], ["", ""]) == [1.0, 0.0]
    always = RewardSet([own("opened")], opened=True).functions[0]
    assert always([[{"role": "user", "content": "Why?"}]], [[{"role": "assistant", "content": ""}]]) == [1.0]


def test_rewards_that_wait_are_scored_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples that each wait for the other: one thread would never get past the first."""
    rewards = RewardSet([RewardSettings("maths")], num_threads=2)
    both = threading.Barrier(2, timeout=30)

    class Waiting:
        waits = True

        def __call__(self, completion: str, row: Any) -> float:
            return float(both.wait() >= 0)

    monkeypatch.setattr(rewards, "rewards", [Waiting()])
    assert [each.total for each in rewards.score(["", ""], [{}, {}])] == [1.0, 1.0]


def test_a_set_can_be_sent_to_a_process() -> None:
    """As TRL's asynchronous GRPO does with its reward functions."""
    function = pickle.loads(pickle.dumps(RewardSet([RewardSettings("exact"), RewardSettings("maths")]).functions[1]))
    assert function.__name__ == "maths"
    assert function(["Q"], ["\\boxed{0.5}"], answer=["1/2"]) == [1.0]
