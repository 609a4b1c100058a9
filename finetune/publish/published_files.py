"""Of a folder, what is on the Hub unchanged after publishing: all but what publishing itself writes or mends."""

import tempfile
from pathlib import Path

from rich.console import Console

from ..byte_progress import byte_progress
from ..errors import PublishError
from .contents import CODE, list_published
from .engine_keys import check_keys
from .hub_account import open_for_reading
from .hub_errors import in_words
from .hub_repository import read_tree
from .mend import mend
from .preflight import read_json
from .private_files import ORIGIN_KEYS, check_private
from .served_with import check_generation_config
from .shards import read_shards
from .source import find_source
from .staging import link_folder
from .verify import Comparison, verify

_WRITTEN_FILES = ("README.md", CODE)
_WRITTEN_FOLDERS = ("plots/", ".eval_results/", "adapter/")
# Of configs: the base's name on the Hub, and where to find seeklet's code.
_WRITTEN_KEYS = frozenset(["auto_map", "base_model_name_or_path", *ORIGIN_KEYS])
_CONFIG = "config.json"


def compare_published(
    folder: Path, repo_id: str, revision: str | None, console: Console, *, fix: bool = False
) -> Comparison:
    """Return how a revision of a repository, by default main, differs from `folder`, which it was published from.

    With `fix` it is compared with what `seeklet publish --fix` makes of the folder, in a copy.

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
    with tempfile.TemporaryDirectory(prefix="seeklet-verify-") as place:
        here = source.folder
        if fix:
            here = Path(place)
            _mend_copy(source.folder, here)
        names = {name for name in list_published(here) if not _is_written(name)}
        # Weights that are there and not here would be loaded by whoever downloads the model.
        names |= {name for name in there if name.endswith((".safetensors", ".json")) and not _is_written(name)}
        files = [here / name for name in names]
        total = sum(file.stat().st_size for file in files if file.is_file())
        with byte_progress(console, "compared", total) as advance:
            return verify(here, repo_id, sorted(names), revision=revision, ignored=_WRITTEN_KEYS, advance=advance)


def _mend_copy(folder: Path, out: Path) -> None:
    """Write to `out`, an empty folder, what `--fix` makes of `folder`."""
    link_folder(folder, out)
    findings = check_private(out, list_published(out))
    if (out / _CONFIG).is_file():
        try:
            config = read_json(out / _CONFIG)
        except ValueError as problem:
            raise PublishError(f"{folder / _CONFIG}: is no JSON of a config: {problem}") from None
        findings += [*check_keys(config, read_shards(out)), *check_generation_config(out, config)]
    mend(out, findings)


def _is_written(name: str) -> bool:
    return name in _WRITTEN_FILES or name.startswith(_WRITTEN_FOLDERS)
