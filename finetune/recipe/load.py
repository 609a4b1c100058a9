"""A recipe read from one strict YAML file: every key known, every value of its type, nothing contradicting another."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from .checks import find_contradictions, find_missing_files
from .fields import FieldReader, strip_places
from .messages import alternatives
from .stages import STAGES, GrpoRecipe, Recipe, StageRecipe, TrainingRecipe
from .trainer_fields import CONFIG_CLASSES, MOVED, list_trainer_fields, read_trainer, set_by_seeklet
from .yaml_text import Problems, Setting, apply_overrides, find_place, read_recipe_file, write_yaml

# Of the sections, as a recipe is written.
ORDER = (
    *("stage", "model", "teacher", "data", "prompts", "rewards", "rollout", "sampling", "cache", "distillation"),
    *("adapter", "moe", "trainer", "evaluation", "output"),
)

# Which command carries out a stage, where that is not `seeklet train`.
COMMANDS = {"rollout": "rollout", "reasoning": "evaluate"}

R = TypeVar("R", bound=StageRecipe)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), of: type[R] = Recipe) -> R:
    """Return the recipe of a YAML file, with `dotted.key=value` overrides put in.

    Raises:
        RecipeError: it is no recipe of the kind `of`, or anything is wrong with it; one line for each problem, with
            file, line, key and what is allowed.
    """
    problems = Problems()
    tree = apply_overrides(read_recipe_file(Path(path)), overrides, problems)
    recipe = read_recipe(tree, problems, of)
    problems.raise_if_any()
    assert recipe is not None
    return recipe


def read_recipe(tree: Setting, problems: Problems, of: type[R] = Recipe, to_come: Collection[str] = ()) -> R | None:
    """Return the recipe of a tree, or None after adding what is wrong with it to `problems`.

    Files and folders of `to_come` need not be there yet: another stage makes them.
    """
    before = len(problems.found)
    given = tree.value
    assert isinstance(given, dict)
    if "stages" in given and "stage" not in given:
        problems.add(given["stages"].place, "stages: is of a pipeline; its command is: seeklet run PIPELINE")
        return None
    stages = {stage: recipe for stage, recipe in STAGES.items() if issubclass(recipe, of)}
    stage = strip_places(given["stage"]) if "stage" in given else None
    known_stage = stage if isinstance(stage, str) and stage in stages else None
    command = COMMANDS.get(stage, "train") if isinstance(stage, str) and stage in STAGES else None
    if command is not None and command not in {COMMANDS.get(each, "train") for each in stages}:
        said = f"stage: {stage} is not of this command; its own is: seeklet {command} RECIPE"
        problems.add(given["stage"].place, said)
        return None
    if "stage" in given and known_stage is None:
        reading = FieldReader({}, problems)
        reading.read(given["stage"], Literal[*stages], "stage")
        # Read on as what it looks like, so that all else that is wrong is told as well.
        given["stage"] = dataclasses.replace(given["stage"], value=_likely_stage(given, stages))
    reader = FieldReader(_list_moved_keys(known_stage), problems)
    recipe: Any = reader.read_section(stages[known_stage or _likely_stage(given, stages)], tree, "")
    trainer = {}
    if "trainer" in given and known_stage in CONFIG_CLASSES:
        trainer = read_trainer(reader, given["trainer"], known_stage)
    if len(problems.found) > before:
        return None
    if isinstance(recipe, TrainingRecipe):
        recipe = dataclasses.replace(recipe, trainer=trainer)
    for key, message in (*find_contradictions(recipe), *find_missing_files(recipe, to_come)):
        problems.add(find_place(tree, key), f"{key}: {message}")
    return recipe if len(problems.found) == before else None


def _likely_stage(given: Mapping[str, Any], stages: Mapping[str, type[StageRecipe]]) -> str:
    """Return the stage most of whose sections are there."""
    return max(stages, key=lambda stage: sum(field.name in given for field in fields(stages[stage])))


def as_yaml(recipe: StageRecipe) -> str:
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
    places: dict[str, list[str]] = {}
    for section, settings in _list_sections(stage).items():
        for each in fields(settings):
            places.setdefault(each.name, []).append(section)
    trained = stage if stage in CONFIG_CLASSES else None
    trainer = {name: f"belongs to trainer.{name}" for name in (list_trainer_fields(trained) if trained else ())}
    elsewhere = {
        key: f"belongs to {found[0]}.{key}"
        for key, found in places.items()
        # A temperature without a section is more likely meant for training than for the evaluation of it.
        if len(found) == 1 and not (found == ["evaluation"] and key in trainer)
    }
    return trainer | set_by_seeklet(trained) | elsewhere | MOVED


def _list_sections(stage: str | None) -> dict[str, Any]:
    """Return name -> settings class of the sections of a stage's recipes; not knowing it, of the likely ones."""
    hints: dict[str, Any] = {}
    for recipe in (STAGES[stage],) if stage else (GrpoRecipe, Recipe):
        hints |= get_type_hints(recipe)
    parts = {name: [part for part in alternatives(hint) if is_dataclass(part)] for name, hint in hints.items()}
    return {name: found[0] for name, found in parts.items() if found}
