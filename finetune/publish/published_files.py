"""Of a folder, what is on the Hub unchanged after publishing: all but what publishing itself writes."""

from pathlib import Path

from rich.console import Console

from ..errors import PublishError
from .byte_progress import byte_progress
from .contents import CODE, list_published
from .hub_account import open_for_reading
from .hub_errors import in_words
from .hub_repository import read_tree
from .private_files import ORIGIN_KEYS
from .source import find_source
from .verify import Comparison, verify

_WRITTEN_FILES = ("README.md", CODE)
_WRITTEN_FOLDERS = ("plots/", ".eval_results/", "adapter/")
# Of configs: the base's name on the Hub, and where to find seeklet's code.
_WRITTEN_KEYS = frozenset(["auto_map", "base_model_name_or_path", *ORIGIN_KEYS])
_CONFIG = "config.json"


def compare_published(folder: Path, repo_id: str, revision: str | None, console: Console) -> Comparison:
    """Return how a revision of a repository, by default main, differs from `folder`, which it was published from.

    Raises:
        PublishError: there is nothing to compare, or the repository cannot be read.
    """
    source = find_source(folder)
    target = open_for_reading(repo_id)
    with in_words(target):
        there = read_tree(target, revision or "main")
    if source.is_adapter and _CONFIG in there:
        raise PublishError(
            f"{source.folder}: is an adapter, and {repo_id} holds a whole model; name the folder of the merged one"
        )
    names = {name for name in list_published(source.folder) if not _is_written(name)}
    # Weights that are there and not here would be loaded by whoever downloads the model.
    names |= {name for name in there if name.endswith((".safetensors", ".json")) and not _is_written(name)}
    files = [source.folder / name for name in names]
    total = sum(file.stat().st_size for file in files if file.is_file())
    with byte_progress(console, "compared", total) as advance:
        return verify(source.folder, repo_id, sorted(names), revision=revision, ignored=_WRITTEN_KEYS, advance=advance)


def _is_written(name: str) -> bool:
    return name in _WRITTEN_FILES or name.startswith(_WRITTEN_FOLDERS)
