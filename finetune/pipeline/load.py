"""A pipeline read from one strict YAML file: all that is wrong with any stage is told at once, before one runs."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..recipe import ReasoningRecipe, StageRecipe, read_recipe
from ..recipe.fields import INVALID, FieldReader
from ..recipe.load import COMMANDS
from ..recipe.yaml_text import Place, Problems, Setting, apply_overrides, read_recipe_file
from .references import References
from .settings import BEFORE, STAGE_NAME, Pipeline, PipelineSettings, Stage, Text

MOVED = {
    "stage": "belongs to a stage: stages.NAME.stage",
    **dict.fromkeys(("model", "data", "prompts", "rewards", "trainer", "adapter"), "belongs to a stage: stages.NAME.…"),
}
# Of the section evaluation, what is not a setting of the evaluation itself.
PROBLEMS_AND_REWARDS = ("prompts", "rewards")


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Return the pipeline of a YAML file, with `dotted.key=value` overrides put in.

    Raises:
        RecipeError: anything is wrong with it; one line for each problem, with file, line, key and what is allowed.
    """
    problems = Problems()
    tree = apply_overrides(read_recipe_file(Path(path)), overrides, problems)
    given = tree.value
    assert isinstance(given, dict)
    if "stage" in given and "stages" not in given:
        command = COMMANDS.get(str(given["stage"].value), "train")
        problems.add(given["stage"].place, f"stage: a recipe of one; its command is: seeklet {command} RECIPE")
        problems.raise_if_any()
    settings = FieldReader(MOVED, problems).read_section(PipelineSettings, tree, "")
    # Without a folder the stages are read on, so that what is wrong with them is told as well.
    folder = Path("runs") if settings is INVALID else Path(settings.output.dir)
    launch = () if settings is INVALID else settings.launch
    stages = _read_stages(given["stages"], folder, launch, problems) if "stages" in given else {}
    if "launch" in given and settings is not INVALID:
        _check_launch(settings.launch, given["launch"].place, "", problems)
    evaluation = None
    if stages and "evaluation" in given and isinstance(given["evaluation"].value, dict):
        evaluation = _read_evaluation(given["evaluation"], given["stages"], folder, problems)
    problems.raise_if_any()
    return Pipeline(str(path), folder.expanduser(), tuple(stages.values()), evaluation)


def _read_stages(section: Setting, folder: Path, launch: tuple[str, ...], problems: Problems) -> dict[str, Stage]:
    """Return the stages that could be read, in order."""
    if not isinstance(section.value, dict):
        return {}
    if not section.value:
        problems.add(section.place, "stages: is empty; at least one is needed")
    stages: dict[str, Stage] = {}
    for name, given in section.value.items():
        stage = _read_stage(name, given, folder, stages, list(section.value), problems)
        if stage is not None:
            stages[name] = stage if stage.launch or _has(given, "launch") else replace(stage, launch=launch)
    return stages


def _read_stage(
    name: str, given: Setting, folder: Path, before: Mapping[str, Stage], names: list[str], problems: Problems
) -> Stage | None:
    if not STAGE_NAME.fullmatch(name) or name == BEFORE:
        taken = ", and not before, where the first model's figures go"
        message = f"stages.{name}: is the name of a folder too; allowed: letters, digits, - and _{taken}"
        problems.add(given.place, message)
        return None
    if not isinstance(given.value, dict):
        problems.add(given.place, f"stages.{name}: expected a section, the recipe of the stage")
        return None
    own = Problems()
    launch = _read_launch(given, name, problems)
    kind = given.value["stage"].value if "stage" in given.value else None
    references = References(name, kind, before, names, problems)
    tree = references.replace(replace(given, value={k: v for k, v in given.value.items() if k != "launch"}))
    tree = _with_folder(tree, folder / name, own)
    to_come = {str(stage.product) for stage in before.values()} | references.left
    recipe = read_recipe(tree, own, of=StageRecipe, to_come=to_come)
    for place, message in own.found:
        problems.add(place, f"stages.{name}: {message}")
    return None if recipe is None else Stage(name, recipe, launch, references.found)


def _with_folder(tree: Setting, folder: Path, problems: Problems) -> Setting:
    """Return the tree of a stage with its output.dir put in."""
    assert isinstance(tree.value, dict)
    output = tree.value.get("output", Setting({}, tree.place))
    if not isinstance(output.value, dict):
        # Is told by whoever reads it.
        return tree
    if "dir" in output.value:
        place = output.value["dir"].place
        problems.add(place, f"output.dir: is set by the pipeline, {folder}; leave it out")
    section = replace(output, value={**output.value, "dir": Setting(str(folder), output.place)})
    return replace(tree, value={**tree.value, "output": section})


def _read_launch(given: Setting, name: str, problems: Problems) -> tuple[str, ...]:
    assert isinstance(given.value, dict)
    if "launch" not in given.value:
        return ()
    setting = given.value["launch"]
    words: Any = FieldReader({}, problems).read(setting, tuple[Text, ...], f"stages.{name}.launch")
    if words is INVALID:
        return ()
    _check_launch(words, setting.place, f"stages.{name}.", problems)
    return words


def _check_launch(words: Sequence[str], place: Place, prefix: str, problems: Problems) -> None:
    if words and find_program(words[0]) is None:
        problems.add(place, f"{prefix}launch: there is no program {words[0]}")


def find_program(word: str) -> str | None:
    """Return the path of a program: of the environment that this Python is in, or else of PATH."""
    return shutil.which(word, path=str(Path(sys.executable).parent)) or shutil.which(word)


def _read_evaluation(given: Setting, stages: Setting, folder: Path, problems: Problems) -> ReasoningRecipe | None:
    """Return the evaluation as a recipe of its own, with the model of the first stage."""
    first = next(iter(stages.value.values()), None) if isinstance(stages.value, dict) else None
    if first is None or not isinstance(first.value, dict) or "model" not in first.value:
        return None
    references = References("", None, {}, [], problems)
    tree = references.replace(given)
    assert isinstance(tree.value, dict)
    section = {key: value for key, value in tree.value.items() if key not in PROBLEMS_AND_REWARDS}
    whole: dict[str, Setting] = {
        "stage": Setting("reasoning", given.place),
        "model": first.value["model"],
        **{key: tree.value[key] for key in PROBLEMS_AND_REWARDS if key in tree.value},
        "evaluation": Setting(dict(section), given.place),
        "output": Setting({"dir": Setting(str(folder / BEFORE), given.place)}, given.place),
    }
    own = Problems()
    recipe = read_recipe(Setting(whole, given.place), own, of=ReasoningRecipe, to_come=references.left)
    for place, message in own.found:
        # What is wrong with the first stage's model is told with that stage.
        if not message.startswith("model"):
            prefix = "evaluation." if message.startswith(PROBLEMS_AND_REWARDS) else ""
            problems.add(place, f"{prefix}{message}")
    return recipe


def _has(setting: Setting, key: str) -> bool:
    return isinstance(setting.value, dict) and key in setting.value
