"""A recipe: everything one training run is told, read from one strict YAML file, as frozen dataclasses."""

from .load import CommonRecipe, GrpoRecipe, Recipe, as_yaml, load_recipe
from .sections import EvaluationSettings, ModelSettings, MoeSettings, OutputSettings, RolloutSettings

__all__ = [
    "CommonRecipe",
    "EvaluationSettings",
    "GrpoRecipe",
    "ModelSettings",
    "MoeSettings",
    "OutputSettings",
    "Recipe",
    "RolloutSettings",
    "as_yaml",
    "load_recipe",
]
