"""One reward of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..limits import NOT_EMPTY


@dataclass(frozen=True)
class RewardSettings:
    """One reward of a recipe."""

    kind: Annotated[str, NOT_EMPTY]
    """Its name among those of `rewards.registry.KINDS`: maths, exact, regex, json_schema, code, format and others."""
    weight: float = 1.0
    """What its score is multiplied by in the sum."""
    name: Annotated[str, NOT_EMPTY] | None = None
    """What it is called in logs, where two are of a kind."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings."""
