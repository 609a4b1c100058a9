"""A recipe: everything one training run is told, read from one strict YAML file, as frozen dataclasses."""

from .load import (
    EvaluationSettings,
    ModelSettings,
    MoeSettings,
    OutputSettings,
    Recipe,
    as_yaml,
    load_recipe,
)

__all__ = [
    "EvaluationSettings",
    "ModelSettings",
    "MoeSettings",
    "OutputSettings",
    "Recipe",
    "as_yaml",
    "load_recipe",
]
