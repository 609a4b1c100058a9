"""What the checks of a recipe say: what a type allows, what was written, and which key was meant."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..limits import Pattern, Range
from .yaml_text import Setting

WORDS = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Any: "a value",
}
# More keys than these are not read in one line.
MAX_KEYS_SHOWN = 20


def without_limits(annotation: Any) -> tuple[Any, list[Range | Pattern]]:
    """Return the bare type of an annotation, and its limits."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    kind, *limits = get_args(annotation)
    return kind, [limit for limit in limits if isinstance(limit, Range | Pattern)]


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the parts of a union, or the annotation alone."""
    kind, _ = without_limits(annotation)
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (annotation,)


def is_list(kind: Any) -> bool:
    """Return whether a bare type is a list or tuple of any length."""
    return (get_origin(kind) or kind) in (tuple, list)


def is_mapping(kind: Any) -> bool:
    """Return whether a bare type is a mapping with free keys."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def is_section(kind: Any) -> bool:
    """Return whether a bare type is a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def list_choices(kind: Any) -> list[Any]:
    """Return the values that a Literal or an Enum allows; none for other types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [member.value for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def is_required(field: dataclasses.Field) -> bool:
    """Return whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def describe(annotation: Any) -> str:
    """Return in words what an annotation allows."""
    parts = alternatives(annotation)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(map(describe, parts)))
    kind, limits = without_limits(annotation)
    if choices := list_choices(kind):
        # true and false as YAML writes them.
        names = [str(each).lower() if isinstance(each, bool) else str(each) for each in choices]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if is_list(kind):
        items = get_args(kind)
        return f"a list, each {describe(items[0])}" if items else "a list"
    if is_section(kind):
        required = [field.name for field in dataclasses.fields(kind) if is_required(field)]
        return f"a section with {', '.join(required)}" if required else "a section"
    if is_mapping(kind):
        return "a section"
    if limits and kind is str:
        return " and ".join(map(str, limits))
    return " ".join([WORDS.get(kind, str(kind)), " and ".join(map(str, limits))]).strip()


def show(setting: Setting) -> str:
    """Return what was written, short enough for one line."""
    value = setting.value
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        short = value if len(value) <= 60 else f"{value[:59]}…"
        return f'"{short}"'.replace("\n", "\\n")
    return "null" if value is None else str(value).lower()


def suggest(setting: Setting, annotation: Any) -> str:
    """Return what helps with a mistake easily made, to be put after a message; often nothing."""
    value = setting.value
    kinds = {without_limits(part)[0] for part in alternatives(annotation)}
    if isinstance(value, str):
        if near := find_nearest(value, [str(choice) for kind in kinds for choice in list_choices(kind)]):
            return f"; nearest: {near}"
        if bool in kinds and value.lower() in ("yes", "no", "on", "off", "y", "n"):
            return "; write true or false"
        if kinds & {int, float} and value.replace("_", "").replace(",", "").isdigit():
            return "; write it in digits alone"
    if str in kinds and type(value) in (int, float, bool):
        return "; put it in quotes"
    return ""


def find_nearest(name: str, valid: Collection[str]) -> str | None:
    """Return the one of the valid names that was probably meant."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), valid, n=1, cutoff=0.55)
    return near[0] if near else None


def say_unknown_key(dotted: str, valid: Collection[str], moved: Mapping[str, str]) -> str:
    """Return the message for a key that does not exist: what became of it, or the nearest one that does."""
    section, _, key = dotted.rpartition(".")
    if told := moved.get(dotted) or moved.get(key):
        return f"{dotted}: {told}"
    if near := find_nearest(key, valid):
        return f"{dotted}: unknown key; nearest: {near}"
    allowed = ", ".join(valid) if len(valid) <= MAX_KEYS_SHOWN else "a field of TRL's own config class"
    return f"{dotted}: unknown key; allowed {'in ' + section if section else 'at the top'}: {allowed}"
