"""The table of rewards in the recipes' folder is the code's."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

from seeklet.finetune.rewards import KINDS

TEXT = (Path(__file__).resolve().parents[3] / "recipes" / "REWARDS.md").read_text(encoding="utf-8")


def test_every_kind_and_setting_is_told() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if "| `" in line[:4]]
    assert [kind.strip("`| ") for kind, *_ in rows] != []
    told = {kind.strip("`| "): set(re.findall(r"`(\w+)`", settings)) for kind, _, settings in rows}
    code = {}
    for kind, place in KINDS.items():
        module, _, name = place.partition(":")
        made_of = getattr(import_module(f"seeklet.finetune.rewards.{module}"), name)
        code[kind] = {field.name for field in dataclasses.fields(made_of)}
    assert told == code


def test_defaults_are_told() -> None:
    for kind, place in KINDS.items():
        module, _, name = place.partition(":")
        made_of = getattr(import_module(f"seeklet.finetune.rewards.{module}"), name)
        [line] = [line for line in TEXT.splitlines() if line.startswith(f"| `{kind}` ")]
        for field in dataclasses.fields(made_of):
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                said = re.search(rf"`{field.name}` \((\d+(?:\.\d+)?)", line)
                assert said and float(said[1]) == field.default, f"{kind}.{field.name}"
