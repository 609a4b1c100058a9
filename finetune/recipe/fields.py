"""From the tree of a recipe to typed values: every key, type, choice and range is checked against dataclasses."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from .messages import (
    alternatives,
    describe,
    is_list,
    is_mapping,
    is_required,
    is_section,
    list_choices,
    say_unknown_key,
    show,
    suggest,
    without_limits,
)
from .yaml_text import Problems, Setting

INVALID: Any = object()
"""Stands for a value that was refused, its problem noted."""


@dataclass
class FieldReader:
    """Reads settings as annotated types. What is refused becomes INVALID, and a problem.

    `moved` says, by key or dotted key, what became of keys that other tools or earlier versions know.
    """

    moved: Mapping[str, str]
    problems: Problems

    def read_section(self, section: type, setting: Setting, path: str) -> Any:
        """Return an instance of the dataclass `section` from a mapping; `path` is its dotted key, or empty."""
        if not isinstance(setting.value, dict):
            self._refuse(setting, section, path)
            return INVALID
        before = len(self.problems.found)
        fields = {field.name: field for field in dataclasses.fields(section)}
        hints = get_type_hints(section, include_extras=True)
        for key, given in setting.value.items():
            if key not in fields:
                self.problems.add(given.place, say_unknown_key(_join(path, key), fields, self.moved))
        values = {}
        for name, field in fields.items():
            if name in setting.value:
                values[name] = self.read(setting.value[name], hints[name], _join(path, name))
            elif is_required(field):
                self.problems.add(setting.place, f"{_join(path, name)}: missing; expected {describe(hints[name])}")
        if len(self.problems.found) > before:
            return INVALID
        try:
            return section(**values)
        except ValueError as error:
            # What the section itself refuses; its message starts with the key, which says where that stands.
            key = str(error).partition(" ")[0].removeprefix(f"{path}.").rstrip(":")
            self.problems.add(setting.value.get(key, setting).place, str(error))
            return INVALID

    def read(self, setting: Setting, annotation: Any, path: str) -> Any:
        """Return the setting's value as the annotated type, or INVALID."""
        parts = alternatives(annotation)
        if len(parts) > 1:
            return self._read_union(setting, annotation, path)
        kind, limits = without_limits(annotation)
        if is_section(kind):
            return self.read_section(kind, setting, path)
        if is_list(kind):
            return self._read_list(setting, annotation, path)
        if is_mapping(kind):
            return self._read_mapping(setting, annotation, path)
        value = strip_places(setting) if kind is Any else _as_scalar(setting.value, kind)
        if value is INVALID or not all(value in limit for limit in limits):
            self._refuse(setting, annotation, path)
            return INVALID
        return value

    def _refuse(self, setting: Setting, annotation: Any, path: str) -> None:
        expected, got = describe(annotation), show(setting)
        self.problems.add(setting.place, f"{path}: expected {expected}, got {got}{suggest(setting, annotation)}")

    def _read_union(self, setting: Setting, annotation: Any, path: str) -> Any:
        """Return the value as the first alternative that takes it; else say what the one of its shape says."""
        tried = []
        for part in alternatives(annotation):
            reader = FieldReader(self.moved, Problems())
            value = reader.read(setting, part, path)
            if value is not INVALID:
                return value
            tried.append((part, reader.problems))
        same_shape = [problems for part, problems in tried if _has_shape(setting.value, part)]
        if len(same_shape) == 1:
            self.problems.found += same_shape[0].found
        else:
            self._refuse(setting, annotation, path)
        return INVALID

    def _read_list(self, setting: Setting, annotation: Any, path: str) -> Any:
        kind, _ = without_limits(annotation)
        # One name where a list of names is meant.
        given = [setting] if isinstance(setting.value, str) else setting.value
        if not isinstance(given, list):
            self._refuse(setting, annotation, path)
            return INVALID
        item = next(iter(get_args(kind)), Any)
        values = [self.read(entry, item, f"{path}[{index}]") for index, entry in enumerate(given)]
        if any(value is INVALID for value in values):
            return INVALID
        return values if kind is list or not issubclass(tuple, kind.__origin__) else tuple(values)

    def _read_mapping(self, setting: Setting, annotation: Any, path: str) -> Any:
        if not isinstance(setting.value, dict):
            self._refuse(setting, annotation, path)
            return INVALID
        arguments = get_args(without_limits(annotation)[0])
        item = arguments[1] if arguments else Any
        values = {key: self.read(given, item, _join(path, key)) for key, given in setting.value.items()}
        return INVALID if any(value is INVALID for value in values.values()) else values


def strip_places(setting: Setting) -> Any:
    """Return the value without the places."""
    if isinstance(setting.value, dict):
        return {key: strip_places(item) for key, item in setting.value.items()}
    if isinstance(setting.value, list):
        return [strip_places(item) for item in setting.value]
    return setting.value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _as_scalar(value: Any, kind: Any) -> Any:
    """Return the value as `kind`, or INVALID. A whole number is a number too; true and false are neither."""
    if choices := list_choices(kind):
        # True == 1, so the types have to agree as well.
        return next((value for choice in choices if choice == value and type(choice) is type(value)), INVALID)
    if kind is NoneType:
        return None if value is None else INVALID
    if kind is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else INVALID
    return value if type(value) is kind else INVALID


def _has_shape(value: Any, annotation: Any) -> bool:
    """Return whether a section or list was probably meant for this alternative."""
    kind, _ = without_limits(annotation)
    if isinstance(value, dict):
        return is_section(kind) or is_mapping(kind)
    return isinstance(value, list) and is_list(kind)
