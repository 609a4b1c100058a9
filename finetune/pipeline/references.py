"""References: texts of a stage's recipe that are exactly "{name}" stand for what the stage of that name left."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..recipe.messages import find_nearest
from ..recipe.yaml_text import Problems, Setting
from .settings import Stage, product_kind

REFERENCE = re.compile(r"\{([^{}]*)\}")
# What the keys take, by their last part; others take whatever is referred to.
MODELS = ("path", "tokenizer")
DATA = ("train", "validation", "evaluation_sets")
# Stages that train nothing, for which an adapter stands for itself on its base.
TAKE_ADAPTERS = ("rollout", "reasoning")


@dataclass
class References:
    """Replaces references within the tree of one stage of a kind, and notes them by dotted key.

    `known` has the stages before it that could be read; `all_names` those of the file, in order. What could not be
    replaced is in `left`.
    """

    stage: str
    kind: Any
    known: Mapping[str, Stage]
    all_names: Collection[str]
    problems: Problems
    found: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def replace(self, setting: Setting, path: str = "") -> Setting:
        """Return the tree with paths in place of references; what is wrong with them goes to the problems."""
        value = setting.value
        if isinstance(value, dict):
            if (name := self._unquoted(value)) is not None:
                message = f'{path}: a reference is a text, and braces alone are a mapping; write "{{{name}}}" in quotes'
                self.problems.add(setting.place, f"{self._where}{message}")
                return self._leave(replace(setting, value=f"{{{name}}}"))
            return replace(setting, value={key: self.replace(item, _join(path, key)) for key, item in value.items()})
        if isinstance(value, list):
            items = [self.replace(item, f"{path}[{index}]") for index, item in enumerate(value)]
            return replace(setting, value=items)
        match = REFERENCE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            return setting
        name = match[1].strip()
        if wrong := self._say_wrong(name, path):
            self.problems.add(setting.place, f'{self._where}{path}: "{{{name}}}": {wrong}')
            return self._leave(setting)
        if name not in self.known:
            # Has problems of its own, which are told.
            return self._leave(setting)
        self.found[path] = name
        return replace(setting, value=str(self.known[name].product))

    def _leave(self, setting: Setting) -> Setting:
        self.left.add(str(setting.value))
        return setting

    @property
    def _where(self) -> str:
        return f"stages.{self.stage}: " if self.stage else "evaluation."

    def _unquoted(self, value: Mapping[str, Setting]) -> str | None:
        """Return the name in `{name}` without quotes, which YAML reads as a mapping of a key without a value."""
        if len(value) != 1:
            return None
        [(name, item)] = value.items()
        return name if item.value is None and name in self.all_names else None

    def _say_wrong(self, name: str, path: str) -> str:
        names = list(self.all_names)
        if not self.stage:
            return "no stage has run when the model before them is evaluated; allowed: files that are there"
        before = names[: names.index(self.stage)]
        if name == self.stage:
            return f"a stage cannot read what it leaves itself; {_allowed(before)}"
        if name in names and name not in before:
            return f"that stage comes after this one; {_allowed(before)}"
        if name not in names:
            near = find_nearest(name, before)
            return f"there is no stage of that name; {f'nearest: {near}' if near else _allowed(before)}"
        return self._say_wrong_kind(self.known[name], path) if name in self.known else ""

    def _say_wrong_kind(self, stage: Stage, path: str) -> str:
        key, leaves = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2], product_kind(stage.recipe)
        takes_adapters = key == "tokenizer" or path == "teacher.path" or self.kind in TAKE_ADAPTERS
        if leaves == "an adapter" and key in MODELS and takes_adapters:
            return ""
        if key in MODELS and leaves == "an adapter":
            return (
                f"that stage leaves an adapter, and a whole model is needed here; set stages.{stage.name}.output.merge "
                "to true"
            )
        wanted = "a model" if key in MODELS else "a data set" if key in DATA else leaves
        return "" if wanted == leaves else f"that stage ({stage.kind}) leaves {leaves}, and {wanted} is needed here"


def _allowed(before: Collection[str]) -> str:
    return f"allowed: {', '.join(before)}" if before else "it is the first, and no stage comes before it"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
