"""What is to be published, from the folder a user names: a model, an adapter, or a run that left one."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, snapshot_download

from ..errors import PublishError
from ..published import is_local
from ..run_folder import RunFolder
from .licences import licence_of

# Where a run leaves what it trained, the best to publish first.
_RESULTS = ("merged", "model", "adapter")


@dataclass(frozen=True)
class Source:
    """What is published and where it came from.

    Attributes:
        folder: of the model or adapter.
        is_adapter: whether it is an adapter.
        adapter: the folder of the adapter: itself, or what a run left beside the merged model.
        run: the folder of the run that made it, where there is one.
        base: what it was trained from, as the recipe or the adapter names it.
        base_folder: of the base on this machine, where it is there.
        base_name: its name on the Hub, where that is known.
        base_licence: as the Hub names it, where it is known.
        base_commit: of the base on the Hub, where its files are of the Hub's cache.
        recipe: of the run, plain values; empty without a run.
    """

    folder: Path
    is_adapter: bool
    adapter: Path | None
    run: RunFolder | None
    base: str | None
    base_folder: Path | None
    base_name: str | None
    base_licence: str | None
    base_commit: str | None
    recipe: dict[str, Any]


def find_source(folder: Path, base_name: str | None = None, *, wants_adapter: bool = False) -> Source:
    """Return what `folder` holds: a model, an adapter, or a run, of which the merged model is taken where there is one.

    Args:
        folder: as named by a user.
        base_name: the base on the Hub, as named by a user, in place of what the files say.
        wants_adapter: take the adapter of a run, and nothing else.

    Raises:
        PublishError: there is nothing in it that could be published, or no adapter where one is wanted.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise PublishError(f"{folder}: there is no such folder; name one that holds a model, an adapter or a run")
    chosen, run = folder, _run_of(folder)
    if not _is_model(folder):
        found = [folder / name for name in _RESULTS if _is_model(folder / name)]
        if not found:
            raise PublishError(
                f"{folder}: holds no config.json or adapter_config.json, and no run that ended; name the folder of a "
                "model, an adapter or a run"
            )
        chosen = found[0]
    is_adapter = not (chosen / "config.json").is_file()
    adapter = chosen if is_adapter else _adapter_beside(chosen, run)
    if wants_adapter and not is_adapter:
        if adapter is None:
            raise PublishError(f"{folder}: holds a whole model and no adapter; leave out --adapter-as")
        chosen, is_adapter = adapter, True
    recipe = _read_recipe(run)
    base = _base_of(chosen, is_adapter, recipe)
    base_folder = _local_folder(base_name or base) or _local_folder(base)
    name = base_name or (base if base and not is_local(base) else None)
    licence = _licence_in(base_folder) or (licence_of(name) if name else None)
    return Source(chosen, is_adapter, adapter, run, base, base_folder, name, licence, _commit_of(base_folder), recipe)


def _adapter_beside(model: Path, run: RunFolder | None) -> Path | None:
    """Return the adapter that a run merged into this model."""
    if run is None or model.resolve() != run.merged.resolve():
        return None
    adapter = run.trained(is_adapter=True)
    return adapter if (adapter / "adapter_config.json").is_file() else None


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _run_of(folder: Path) -> RunFolder | None:
    for place in (folder, folder.resolve().parent):
        if (place / "recipe.yaml").is_file():
            return RunFolder(place)
    return None


def _read_recipe(run: RunFolder | None) -> dict[str, Any]:
    if run is None:
        return {}
    try:
        values = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as problem:
        raise PublishError(f"{run.recipe}: cannot be read: {str(problem).splitlines()[0]}") from None
    return values if isinstance(values, dict) else {}


def _base_of(folder: Path, is_adapter: bool, recipe: dict[str, Any]) -> str | None:
    if is_adapter:
        try:
            base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            base = None
        if isinstance(base, str) and base:
            return base
    path = (recipe.get("model") or {}).get("path")
    return path if isinstance(path, str) else None


def _local_folder(base: str | None) -> Path | None:
    """Return the folder of a base that is on this machine, the Hub's cache included."""
    if base is None:
        return None
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return path
    if is_local(base) or base.count("/") > 1:
        return None
    try:
        return Path(snapshot_download(base, local_files_only=True))
    except (OSError, ValueError):
        return None


def _commit_of(base_folder: Path | None) -> str | None:
    # The Hub's cache has a folder for each commit.
    return base_folder.name if base_folder is not None and base_folder.parent.name == "snapshots" else None


def _licence_in(folder: Path | None) -> str | None:
    if folder is None or not (folder / "README.md").is_file():
        return None
    try:
        licence = ModelCard((folder / "README.md").read_text(encoding="utf-8")).data.get("license")
    except (ValueError, OSError):
        return None
    return licence if isinstance(licence, str) else None
