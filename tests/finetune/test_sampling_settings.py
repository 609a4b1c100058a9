"""The settings of rollouts and of evaluations of reasoning, as sections of a recipe."""

from typing import Any

import pytest

from seeklet.finetune.evaluation.reasoning_settings import ReasoningEvaluationSettings
from seeklet.finetune.recipe.fields import FieldReader
from seeklet.finetune.recipe.yaml_text import Place, Problems, Setting
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from seeklet.finetune.sampling import Sampling


def as_setting(value: Any) -> Setting:
    if isinstance(value, dict):
        value = {key: as_setting(item) for key, item in value.items()}
    elif isinstance(value, list):
        value = [as_setting(item) for item in value]
    return Setting(value, Place("recipe.yaml", 1))


def read(section: type, values: dict[str, Any]) -> tuple[Any, list[str]]:
    problems = Problems()
    made = FieldReader({}, problems).read_section(section, as_setting(values), "sampling")
    return made, [message for _, message in problems.found]


def test_a_section_is_read() -> None:
    values = {"num_samples": 8, "top_p": 0.9, "min_rewards": {"trace": 1}, "evaluation_sets": ["a.jsonl"], "min_p": 0.1}
    made, problems = read(RejectionSamplingSettings, values)
    assert problems == []
    assert made == RejectionSamplingSettings(
        num_samples=8, top_p=0.9, min_rewards={"trace": 1.0}, evaluation_sets=("a.jsonl",), min_p=0.1
    )
    assert made.sampling == Sampling(max_new_tokens=2048, temperature=1.0, top_p=0.9, top_k=0, min_p=0.1, use_mtp=False)
    made, problems = read(ReasoningEvaluationSettings, {"pass_at": [1, 8], "difficulty": None})
    assert problems == [] and (made.pass_at, made.difficulty) == ((1, 8), None)
    assert made.sampling == Sampling(max_new_tokens=32768, temperature=0.6, top_p=0.95)


@pytest.mark.parametrize("section", [RejectionSamplingSettings, ReasoningEvaluationSettings])
@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"top_p": 0.0}, "sampling.top_p: expected a number above 0 and at most 1, got 0.0"),
        ({"temperature": -1.0}, "sampling.temperature: expected a number at least 0, got -1.0"),
        ({"min_p": 1.5}, "sampling.min_p: expected a number at least 0 and at most 1, got 1.5"),
        ({"num_samples": 0}, "sampling.num_samples: expected a whole number at least 1, got 0"),
        ({"temprature": 1.0}, "sampling.temprature: unknown key"),
        ({"temperature": 0}, "num_samples is"),
    ],
)
def test_what_is_not_allowed(section: type, values: dict[str, Any], start: str) -> None:
    _, [message] = read(section, values)
    assert message.startswith(start)
