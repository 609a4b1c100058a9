"""The manifest of a pipeline: of each stage what it was told, what it read and what it left, with hashes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..atomic_files import write_text
from ..errors import RecipeError
from ..recipe import as_yaml
from ..run_folder import FREE_TRAINER_SETTINGS
from .hashes import FileFacts, hash_together
from .inputs import Inputs
from .settings import MANIFEST, STAGE_NAME, Stage

FORMAT = 1
# What a stage may be told anew when it is done: where it writes, and what changes no weight.
FREE_KEYS = ("output.plots", "output.max_shard_gb")


@dataclass
class StageRecord:
    """What is known of one stage; `ended` and the product are there when it is done."""

    name: str
    kind: str
    recipe: dict[str, Any]
    """The resolved recipe, with references in place of products' paths."""
    recipe_sha256: str
    inputs: Inputs
    versions: dict[str, str]
    begun: str
    ended: str | None = None
    seconds: float | None = None
    """Of the part that ended it, where it was interrupted."""
    product: str | None = None
    """Its path, relative to the pipeline's folder."""
    files: dict[str, FileFacts] = field(default_factory=dict)
    """Of the product, by path within it: bytes, mtime_ns, sha256."""
    product_sha256: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the stage has left its product."""
        return self.ended is not None


@dataclass
class Manifest:
    """The records of stages, in order; `evaluations` by stage (and `before`) say what was evaluated and how."""

    stages: dict[str, StageRecord] = field(default_factory=dict)
    evaluations: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it whole.

        Raises:
            OSError: it cannot be written.
        """
        content = {
            "format": FORMAT,
            "stages": [asdict(record) for record in self.stages.values()],
            "evaluations": self.evaluations,
        }
        write_text(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in a folder, or None where there is none.

    Raises:
        RecipeError: it is damaged.
        OSError: it cannot be read.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        return _read(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RecipeError(
            f"{file}: is damaged, so nobody can say what is done ({reason}); put it back as it was, or begin again "
            "with --from and the first stage"
        ) from None


def _read(content: Any) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} is unknown")
    records: dict[str, StageRecord] = {}
    for given in content["stages"]:
        record = StageRecord(**given)
        for each in fields(record):
            _check_type(each.name, getattr(record, each.name))
        if not STAGE_NAME.fullmatch(record.name) or record.name in records:
            raise ValueError(f"the stage {record.name!r}")
        if hash_recipe(record.recipe) != record.recipe_sha256:
            raise ValueError(f"the recipe of {record.name} is not that of its hash")
        if record.is_done and hash_together(record.files) != record.product_sha256:
            raise ValueError(f"the files of {record.name} are not those of their hash")
        records[record.name] = record
    evaluations = content["evaluations"]
    if not all(isinstance(each, str) for each in evaluations.values()):
        raise TypeError("evaluations")
    return Manifest(records, evaluations)


def _check_type(name: str, value: Any) -> None:
    mappings, optional = ("recipe", "inputs", "versions", "files"), ("ended", "seconds", "product", "product_sha256")
    wanted: Any = dict if name in mappings else (int, float) if name == "seconds" else str
    if not isinstance(value, wanted) and not (value is None and name in optional):
        raise TypeError(f"{name} is {value!r}")
    if name == "files" and value and not all(isinstance(facts.get("sha256"), str) for facts in value.values()):
        raise TypeError("files")


def plain_recipe(stage: Stage) -> dict[str, Any]:
    """Return the resolved recipe as plain values, with references in place of the paths of products."""
    plain = yaml.safe_load(as_yaml(stage.recipe))
    for key, name in stage.references.items():
        _put(plain, key, f"{{{name}}}")
    # The folder of the pipeline may be moved.
    del plain["output"]["dir"]
    return plain


def _put(plain: Any, dotted: str, value: str) -> None:
    *path, last = dotted.replace("[", ".").replace("]", "").split(".")
    for key in path:
        plain = plain[int(key) if isinstance(plain, list) else key]
    if isinstance(plain, list):
        plain[int(last)] = value
    else:
        # One name stands for a list of one.
        plain[last] = [value] if isinstance(plain[last], list) else value


def hash_recipe(recipe: Mapping[str, Any]) -> str:
    """Return a SHA-256 of a plain recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (dotted key, value before, value now) of what a stage was told otherwise, the values as they are shown."""
    old, new = dict(_flatten(before)), dict(_flatten(now))
    keys = [key for key in dict.fromkeys((*old, *new)) if not _is_free(key)]
    shown = [(key, *(repr(each[key]) if key in each else "nothing" for each in (old, new))) for key in keys]
    return [(key, was, value) for key, was, value in shown if was != value]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return key in FREE_KEYS or (section == "trainer" and name.startswith(FREE_TRAINER_SETTINGS))
