"""What of a recipe may be published: names, and no folder of this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Keys of a recipe whose values are files, folders, or names on the Hub.
PATH_KEYS = ("path", "tokenizer", "train", "validation", "chat_template")


def is_local(name: str) -> bool:
    """Return whether a file, folder or model that a recipe names is on this machine, and not on the Hub."""
    return _is_path(name) or _exists(name)


def public_name(name: str) -> str:
    """Return the last part of a path on this machine; a name on the Hub as it is."""
    return Path(name).name if is_local(name) else name


def without_folders(value: Any, key: str = "") -> Any:
    """Return plain values of a recipe, each path on this machine cut down to its last part; `key` is theirs."""
    if isinstance(value, Mapping):
        return {name: without_folders(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key == "dir":
        return Path(value).name
    local = is_local(value) if key in PATH_KEYS else _is_path(value)
    return Path(value).name if local else value


def _is_path(text: str) -> bool:
    """Return whether any text of a recipe can only be a path: absolute, one that goes up, or of several parts."""
    path = Path(os.path.expanduser(text))
    return path.is_absolute() or ".." in path.parts or (len(path.parts) > 1 and _exists(text))


def _exists(text: str) -> bool:
    # Long texts and those with a null byte are no paths.
    return os.path.exists(os.path.expanduser(text))
