"""The text of a recipe and of `key=value` overrides as a tree of values that know where they were written.

Numbers, null, true and false are those of YAML 1.2, so that 1e-4 is a number, and `no` and `on` are texts. Anchors,
aliases, tags and duplicate keys are refused: a recipe says each thing once, and where it stands.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..errors import RecipeError

# The longest recipe of ours has 4 kB; what is far beyond is something else, such as a data file.
MAX_BYTES = 2**18
MAX_DEPTH = 12
# Part of what PyYAML says, whether the place is where it began to read, and what a user can do with it.
SYNTAX_ERRORS = (
    ("could not find expected ':'", True, "no colon after the key"),
    ("mapping values are not allowed", False, "a colon too many; a text with a colon and a space is put in quotes"),
    ("while scanning a quoted scalar", True, "the quote is not closed"),
    ("while parsing a flow sequence", True, "the bracket [ is not closed, or a comma is missing"),
    ("while parsing a flow mapping", True, "the brace { is not closed, or a comma is missing"),
    ("cannot start any token", False, "a text that starts with this character is put in quotes"),
    ("while parsing a block", False, "the indentation does not fit the lines before"),
)
NULL, BOOL, INT, FLOAT, TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True, order=True)
class Place:
    """A line of a recipe, or the override a value came from, which has line 0."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Setting:
    """A value and its place: that of its key, or of itself within a list."""

    value: "Value"
    place: Place


Value = bool | int | float | str | list[Setting] | dict[str, Setting] | None


@dataclass
class Problems:
    """Everything found wrong so far."""

    found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """Note one problem; a message repeated for one place is noted once."""
        if (place, message) not in self.found:
            self.found.append((place, message))

    def raise_if_any(self) -> None:
        """Raise one RecipeError with a line for each problem, in the order of the file, overrides after it."""
        if self.found:
            in_order = sorted(self.found, key=lambda problem: (problem[0].line == 0, problem[0].line))
            raise RecipeError("\n".join(_as_one_line(f"{place}: {message}") for place, message in in_order))


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of YAML 1.2's core schema instead of those of 1.1."""

    # PyYAML's own table, empty here and filled below.
    yaml_implicit_resolvers: ClassVar = {}


for _tag, _regex, _first in (
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_regex})\Z"), _first)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, which here puts quotes round texts that are numbers in either version of YAML."""

    yaml_implicit_resolvers: ClassVar = {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


def read_recipe_file(path: Path) -> Setting:
    """Return the tree of a recipe; raises RecipeError if it cannot be read, or is no YAML, or not one mapping."""
    try:
        # Not is_file first: a folder, a missing file and a forbidden one each have their own OSError.
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}{_suggest_file(path)}") from None
    except ValueError as error:
        raise RecipeError(f"{str(path)!r}: not the name of a file: {error}") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES // 1024} KiB, so hardly a recipe")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}") from None
    problems = Problems()
    tree = _read(text, Place(str(path), 1), problems)
    problems.raise_if_any()
    if not isinstance(tree.value, dict):
        what = "is empty" if tree.value is None else "is not a mapping"
        raise RecipeError(f"{path}:1: the recipe {what}; it starts with keys such as 'stage: sft'")
    return tree


def apply_overrides(tree: Setting, overrides: Sequence[str], problems: Problems) -> Setting:
    """Return the tree with every `dotted.key=value` put in; the value is read as YAML."""
    for text in overrides:
        place, before = Place(f"override {text!r}"), len(problems.found)
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            problems.add(place, "expected key=value, such as trainer.learning_rate=1e-5")
            continue
        try:
            setting = _read(value, place, problems)
        except RecipeError as error:
            problems.add(place, str(error).removeprefix(f"{place}: "))
            continue
        if len(problems.found) == before:
            tree = _put(tree, path, setting)
    return tree


def find_place(tree: Setting, dotted: str) -> Place:
    """Return where a key stands; where it is not given, that of the section it would stand in."""
    for key in dotted.split("."):
        if not isinstance(tree.value, dict) or key not in tree.value:
            break
        tree = tree.value[key]
    return tree.place


def write_yaml(value: Any) -> str:
    """Return plain values as YAML that both YAML 1.1 and 1.2 read back as they are."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _put(tree: Setting, path: list[str], setting: Setting) -> Setting:
    if not path:
        return setting
    # What is not a section becomes one, written by the override.
    below, place = (tree.value, tree.place) if isinstance(tree.value, dict) else ({}, setting.place)
    first, *rest = path
    return Setting(below | {first: _put(below.get(first, Setting(None, setting.place)), rest, setting)}, place)


def _read(text: str, start: Place, problems: Problems) -> Setting:
    """Return the tree of one YAML document. `start` places its first line; an override has only that place."""
    try:
        if not _is_plain(yaml.parse(text, _Loader), start, problems):
            return Setting(None, start)
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(_say_syntax_error(error, text, start)) from None
    return Setting(None, start) if node is None else _convert(node, start, start, problems)


def _is_plain(events: Iterable[yaml.Event], start: Place, problems: Problems) -> bool:
    """Return whether there is one document without anchors, aliases and tags, and not nested out of all reason."""
    before = len(problems.found)
    documents = depth = 0
    for event in events:
        place = _place(event, start)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            problems.add(place, "a second YAML document starts here; a recipe is one")
            break
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                problems.add(place, f"nested more than {MAX_DEPTH} deep")
                break
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            problems.add(place, f"the alias *{event.anchor}: recipes have none, write the value out")
        elif isinstance(event, yaml.NodeEvent) and event.anchor:
            problems.add(place, f"the anchor &{event.anchor}: recipes have none, write each value out")
        if getattr(event, "tag", None):
            problems.add(place, f"the tag {_shorten(event.tag)}: recipes have none, and run no code")  # type: ignore[attr-defined]
    return len(problems.found) == before


def _convert(node: yaml.Node, place: Place, start: Place, problems: Problems) -> Setting:
    if isinstance(node, yaml.MappingNode):
        return Setting(_convert_mapping(node, start, problems), place)
    if isinstance(node, yaml.SequenceNode):
        return Setting([_convert(item, _place(item, start), start, problems) for item in node.value], place)
    return Setting(_convert_scalar(node, place, problems), place)


def _convert_mapping(node: yaml.MappingNode, start: Place, problems: Problems) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    for key_node, value_node in node.value:
        place = _place(key_node, start)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != TEXT:
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            problems.add(place, f"the key {shown}: keys are names")
            continue
        key = key_node.value
        if key in settings:
            problems.add(place, f"{_shorten(key)}: is there twice, first at {settings[key].place}")
            continue
        settings[key] = _convert(value_node, place, start, problems)
    return settings


def _convert_scalar(node: yaml.Node, place: Place, problems: Problems) -> bool | int | float | str | None:
    text = node.value
    if node.tag == NULL:
        return None
    if node.tag == BOOL:
        return text.lower() == "true"
    if node.tag in (INT, FLOAT) and len(text) > 100:
        problems.add(place, f"the number {_shorten(text)}: has {len(text)} characters")
        return None
    if node.tag == INT:
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if node.tag == FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _place(item: yaml.Event | yaml.Node, start: Place) -> Place:
    return Place(start.source, item.start_mark.line + start.line) if start.line else start


def _say_syntax_error(error: yaml.YAMLError, text: str, start: Place) -> str:
    """Return one line for what PyYAML says in many."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        # The reader's: a character that YAML allows nowhere.
        position = getattr(error, "position", 0)
        place = Place(start.source, start.line + text[:position].count("\n")) if start.line else start
        return f"{place}: not YAML: the character {text[position : position + 1]!r} is not allowed"
    said = f"{error.context or ''} {error.problem or ''}".strip()
    mark, message = error.problem_mark, said
    for part, at_start, meaning in SYNTAX_ERRORS:
        if part in said:
            # What was opened and never closed is seen far below.
            mark, message = (at_start and error.context_mark) or mark, meaning
            break
    place = Place(start.source, start.line + mark.line) if start.line else start
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    if "\t" in line[: mark.column + 1]:
        return f"{place}: a tab; YAML is indented with spaces"
    return (
        f"{place}: not YAML: {message}: {_shorten(line.strip())}" if line.strip() else f"{place}: not YAML: {message}"
    )


def _suggest_file(path: Path) -> str:
    """Return the nearest recipe beside one that is not there, to be put after a message; often nothing."""
    names = [entry.name for entry in path.parent.glob("*.yaml") if entry.name != path.name]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest: {path.parent / near[0]}" if near else ""


def _as_one_line(text: str) -> str:
    """Return the text with line ends and other characters that steer a terminal written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
