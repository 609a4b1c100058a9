"""A pipeline as it was asked for: its stages in order, each a recipe whose references are replaced by paths."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.models import TRAINED
from ..limits import Text
from ..recipe import FolderSettings, ReasoningRecipe, RolloutRecipe, StageRecipe, TrainingRecipe
from ..rollout.run import DATASET

MANIFEST, REPORT = "manifest.json", "report.md"
# Where the evaluation of the first stage's model goes, beside the folders of the stages.
BEFORE = "before"
# Names of folders, so that a name from a manifest leads nowhere else.
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """The keys of a pipeline's file."""

    output: FolderSettings
    """The folder of all stages."""
    launch: tuple[Text, ...] = ()
    """Words put before `-m seeklet.finetune train RECIPE`, such as [accelerate, launch]: each stage is a process then;
    empty runs them in this one. A stage may have its own."""
    evaluation: Mapping[str, Any] | None = None
    """Prompts, rewards and settings of the evaluation of reasoning after each stage that trains."""
    stages: Mapping[str, Any]
    """Recipes by name, in order."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: its key in the file; its folder within the pipeline's has the same name.
        recipe: what is carried out.
        launch: words that start it in processes of its own; empty carries it out in this one.
        references: dotted keys of the recipe whose values are products of earlier stages, with the stages' names.
    """

    name: str
    recipe: StageRecipe
    launch: tuple[str, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Of the recipe: sft, grpo, rollout and so on."""
        return self.recipe.stage

    @property
    def folder(self) -> Path:
        """Where the stage writes."""
        return Path(self.recipe.output.dir).expanduser()

    @property
    def product(self) -> Path:
        """What the stage leaves for later ones: a model, an adapter, a data set, or the figures of an evaluation."""
        return self.folder / product_name(self.recipe)

    @property
    def trains(self) -> bool:
        """Whether it leaves a model or an adapter."""
        return isinstance(self.recipe, TrainingRecipe)


@dataclass(frozen=True)
class Pipeline:
    """Stages in order, the folder of all, and how each trained model is evaluated, if at all.

    The model that `evaluation` names is that of the first stage.
    """

    source: str
    folder: Path
    stages: tuple[Stage, ...]
    evaluation: ReasoningRecipe | None = None

    def stage(self, name: str) -> Stage:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)


def product_name(recipe: StageRecipe) -> str:
    """Return the path of a stage's product within its folder."""
    if isinstance(recipe, TrainingRecipe):
        adapter, model, merged = TRAINED
        return merged if recipe.output.merge else adapter if recipe.adapter is not None else model
    return DATASET if isinstance(recipe, RolloutRecipe) else "reasoning.json"


def product_kind(recipe: StageRecipe) -> str:
    """Return in words what a stage leaves."""
    if isinstance(recipe, TrainingRecipe):
        return "an adapter" if product_name(recipe) == TRAINED[0] else "a model"
    return "a data set" if isinstance(recipe, RolloutRecipe) else "figures"
