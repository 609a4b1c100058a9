"""Every kind of reward by its plain name."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from ..errors import RecipeError
from ..recipe.fields import INVALID, FieldReader
from ..recipe.messages import find_nearest
from ..recipe.yaml_text import Place, Problems, Setting
from .completion import Reward

# Name → module of this package and class in it. Imported when asked for: some bring large libraries.
KINDS: Mapping[str, str] = {
    "maths": "maths:Maths",
    "exact": "match:Exact",
    "regex": "match:Matches",
    "json_schema": "json_match:JsonSchema",
    "json_fields": "json_match:JsonFields",
    "code": "code:Code",
    "reasoning_gym": "task:ReasoningGym",
    "format": "format:Format",
    "language": "language:Language",
    "overlong": "length:Overlong",
    "repetition": "repetition:Repetition",
    "own": "own:Own",
}


def make_reward(kind: str, settings: Mapping[str, Any] | None = None, path: str = "") -> Reward:
    """Return a reward of a kind of `KINDS`, its settings checked; `path` is its own dotted key in a recipe.

    >>> make_reward("overlong", {"max_tokens": 100, "buffer_tokens": 20})
    Overlong(max_tokens=100, buffer_tokens=20)

    Raises:
        RecipeError: there is no such kind, a library for it is missing, or a setting is unknown, missing or wrong.
    """
    if kind not in KINDS:
        near = find_nearest(str(kind), KINDS)
        meant = f'; did you mean "{near}"?' if near else ""
        raise RecipeError(f'{path or "reward"}.kind: there is no reward "{kind}"; allowed: {", ".join(KINDS)}{meant}')
    module, _, name = KINDS[kind].partition(":")
    try:
        made_of = getattr(import_module(f".{module}", __package__), name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f'{path or "reward"}.kind: "{kind}" needs {error.name}, which is not installed; '
            'pip install "seeklet[reasoning]"'
        ) from None
    problems, section = Problems(), f"{path}.settings" if path else kind
    made = FieldReader({}, problems).read_section(made_of, _as_setting(dict(settings or {})), section)
    if made is INVALID:
        raise RecipeError("\n".join(dict.fromkeys(_located(message, section) for _, message in problems.found)))
    return cast(Reward, made)


def _as_setting(value: Any) -> Setting:
    if isinstance(value, Mapping):
        value = {key: _as_setting(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [_as_setting(item) for item in value]
    return Setting(value, Place("rewards", 0))


def _located(message: str, path: str) -> str:
    # What a class itself refuses begins with its field.
    return message if message.startswith(f"{path}.") else f"{path}: {message}"
