"""A recipe: everything one training run is told, as frozen dataclasses read from one strict YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..adapter_settings import AdapterSettings
from ..data.settings import DataSettings
from ..prompts.settings import PromptSettings
from ..rewards.settings import RewardSettings
from .checks import find_contradictions, find_missing_files
from .fields import FieldReader, strip_places
from .sections import EvaluationSettings, ModelSettings, MoeSettings, OutputSettings, RolloutSettings
from .trainer_fields import MOVED, list_trainer_fields, read_trainer, set_by_seeklet
from .yaml_text import Problems, apply_overrides, find_place, read_recipe_file, write_yaml


@dataclass(frozen=True, kw_only=True)
class CommonRecipe:
    """What recipes of all stages have. `trainer` holds fields of TRL's config class for the stage, checked by type."""

    stage: str
    model: ModelSettings
    adapter: AdapterSettings | None = None
    """What is trained beside the frozen model; null trains every weight."""
    moe: MoeSettings = field(default_factory=MoeSettings)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    output: OutputSettings


@dataclass(frozen=True, kw_only=True)
class Recipe(CommonRecipe):
    """Supervised fine-tuning on conversations."""

    stage: Literal["sft"]
    data: DataSettings
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True, kw_only=True)
class GrpoRecipe(CommonRecipe):
    """Reinforcement learning from rewards by group relative policy optimisation."""

    stage: Literal["grpo"]
    prompts: PromptSettings
    rewards: tuple[RewardSettings, ...]
    rollout: RolloutSettings = field(default_factory=RolloutSettings)


STAGES: Mapping[str, type[CommonRecipe]] = {"sft": Recipe, "grpo": GrpoRecipe}
# Of the sections, as a recipe is written.
ORDER = ("stage", "model", "data", "prompts", "rewards", "rollout", "adapter", "moe", "trainer", "evaluation", "output")


R = TypeVar("R", bound=CommonRecipe)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), of: type[R] = Recipe) -> R:
    """Return the recipe of a YAML file, with `dotted.key=value` overrides put in.

    Raises:
        RecipeError: it is no recipe of the kind `of`, or anything is wrong with it; one line for each problem, with
            file, line, key and what is allowed.
    """
    problems = Problems()
    tree = apply_overrides(read_recipe_file(Path(path)), overrides, problems)
    given = tree.value
    assert isinstance(given, dict)
    stages = {stage: recipe for stage, recipe in STAGES.items() if issubclass(recipe, of)}
    stage = strip_places(given["stage"]) if "stage" in given else None
    known_stage = stage if isinstance(stage, str) and stage in stages else None
    if "stage" in given and known_stage is None:
        reading = FieldReader({}, problems)
        reading.read(given["stage"], Literal[*stages], "stage")
        # Read on as what it looks like, so that all else that is wrong is told as well.
        given["stage"] = replace(given["stage"], value=_likely_stage(given, stages))
    reader = FieldReader(_list_moved_keys(known_stage), problems)
    recipe = reader.read_section(stages[known_stage or _likely_stage(given, stages)], tree, "")
    trainer = read_trainer(reader, given["trainer"], known_stage) if "trainer" in given and known_stage else {}
    problems.raise_if_any()
    recipe = replace(recipe, trainer=trainer)
    for key, message in (*find_contradictions(recipe), *find_missing_files(recipe)):
        problems.add(find_place(tree, key), f"{key}: {message}")
    problems.raise_if_any()
    return recipe


def _likely_stage(given: Mapping[str, Any], stages: Mapping[str, type[CommonRecipe]]) -> str:
    """Return the stage most of whose sections are there."""
    return max(stages, key=lambda stage: sum(field.name in given for field in fields(stages[stage])))


def as_yaml(recipe: CommonRecipe) -> str:
    """Return the whole recipe, defaults included, as YAML that `load_recipe` reads back as the same recipe."""
    plain = _as_plain(recipe)
    return write_yaml({name: plain[name] for name in ORDER if name in plain})


def _as_plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _as_plain(item) for key, item in value.items()}
    return [_as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _list_moved_keys(stage: str | None) -> dict[str, str]:
    """Return what to say of keys that stand in the wrong section, or that other tools and versions know."""
    sections = {
        "model": ModelSettings,
        "data": DataSettings,
        "prompts": PromptSettings,
        "rollout": RolloutSettings,
        "adapter": AdapterSettings,
        "moe": MoeSettings,
        "evaluation": EvaluationSettings,
        "output": OutputSettings,
    }
    there = {field.name for field in fields(STAGES[stage])} if stage else set(sections)
    sections = {name: settings for name, settings in sections.items() if name in there}
    places: dict[str, list[str]] = {}
    for section, settings in sections.items():
        for each in fields(settings):
            places.setdefault(each.name, []).append(section)
    trainer = {name: f"belongs to trainer.{name}" for name in (list_trainer_fields(stage) if stage else ())}
    elsewhere = {key: f"belongs to {found[0]}.{key}" for key, found in places.items() if len(found) == 1}
    return trainer | set_by_seeklet(stage) | elsewhere | MOVED
