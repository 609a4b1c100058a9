"""A recipe: everything one training run is told, read from one strict YAML file, as frozen dataclasses."""

from .load import as_yaml, load_recipe, read_recipe
from .sections import (
    EvaluationSettings,
    FolderSettings,
    ModelSettings,
    MoeSettings,
    OutputSettings,
    RolloutSettings,
)
from .stages import (
    DistillRecipe,
    GrpoRecipe,
    ReasoningRecipe,
    Recipe,
    RolloutRecipe,
    StageRecipe,
    TopKRecipe,
    TrainingRecipe,
)

__all__ = [
    "DistillRecipe",
    "EvaluationSettings",
    "FolderSettings",
    "GrpoRecipe",
    "ModelSettings",
    "MoeSettings",
    "OutputSettings",
    "ReasoningRecipe",
    "Recipe",
    "RolloutRecipe",
    "RolloutSettings",
    "StageRecipe",
    "TopKRecipe",
    "TrainingRecipe",
    "as_yaml",
    "load_recipe",
    "read_recipe",
]
