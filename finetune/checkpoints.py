"""The checkpoints of a run: each is there whole or not at all; the last ones and the best are kept."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list, wait_for_everyone

from seeklet.modeling.atomic_directory import replaced_directory

# Trainer's state: written last, and nothing resumes without it.
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
# What a save or a deletion that was killed leaves behind; of a save within a save, with another dot before it.
_UNFINISHED = re.compile(r"\.+([^.].*?)\.(saving|previous|deleted)-.+")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints in `folder`, the earliest step first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return sorted(found, key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the latest step, or None where there is none."""
    return next(reversed(list_checkpoints(folder)), None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def num_processes_of(checkpoint: Path) -> int:
    """Return how many processes saved a checkpoint: each leaves its own random state."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


@contextmanager
def written_by_all(target: Path, last: str, is_main: bool) -> Iterator[Path]:
    """Give every process the same empty directory to write to, which becomes `target` at the end.

    It appears in one step, when all processes have written, and replaces what was there. When the block raises in the
    main process, or that is killed, `target` is as it was. All processes must see the same folder. `last` is the name
    of a file without which nothing reads the others.

    Raises:
        OSError: writing fails.
    """
    if not is_main:
        yield Path(_from_main(None))
        wait_for_everyone()
        wait_for_everyone()
        return
    with replaced_directory(target, lambda name: True, last) as staging:
        yield Path(_from_main(str(staging)))
        wait_for_everyone()
    wait_for_everyone()


def new_checkpoint(folder: Path, step: int, is_main: bool) -> AbstractContextManager[Path]:
    """Give every process the directory that becomes the checkpoint of `step`: see `written_by_all`."""
    return written_by_all(checkpoint_path(folder, step), STATE_FILE, is_main)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, so that at no moment a part of it has its name."""
    away = checkpoint.with_name(f".{checkpoint.name}.deleted-{secrets.token_hex(4)}")
    checkpoint.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def rotate(folder: Path, limit: int | None, best_step: int | None) -> None:
    """Delete the earliest checkpoints but `limit`; the last and the best one are kept in any case.

    With checkpoints 2, 4, 6, 8, a limit of 2 and best step 4: 2 and 6 go.
    """
    checkpoints = list_checkpoints(folder)
    if limit is None or limit <= 0:
        return
    kept = {checkpoints[-1], *(c for c in checkpoints if step_of(c) == best_step)} if checkpoints else set()
    too_many = len(checkpoints) - max(limit, len(kept))
    for checkpoint in [c for c in checkpoints if c not in kept][: max(0, too_many)]:
        delete_checkpoint(checkpoint)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed saves and deletions left in `folder`, of whatever; nobody else may be writing there."""
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        match = _UNFINISHED.fullmatch(entry.name)
        if match is None:
            continue
        target = folder / match[1]
        if match[2] == "previous" and not target.exists():
            # Was moved away for the new one, where the file system cannot exchange directories.
            entry.rename(target)
        elif entry.is_file():
            # Of `atomic_files`.
            entry.unlink(missing_ok=True)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _from_main(value: str | None) -> str:
    objects = broadcast_object_list([value])
    assert isinstance(objects[0], str)
    return objects[0]
