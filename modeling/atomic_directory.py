"""Replacing what a directory holds in one step, so that a killed save leaves the previous checkpoint whole."""

import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# Neither the system nor the file system knows the exchange: two renames have to do.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def replaced_directory(target: str | os.PathLike, is_replaced: Callable[[str], bool], last: str) -> Iterator[Path]:
    """Give an empty directory to write to; when the block ends, its files are the new contents of `target`.

    A `target` with something to lose (a file that `is_replaced`) changes in one step: at every moment, also after a
    kill or a power failure, it is either as before or as wanted. Other files of `target`, and its subdirectories,
    are kept. When the block raises, `target` stays as it was. What killed saves left behind is removed.

    Where there is nothing to lose, and where a directory cannot be exchanged (a mount point, the working directory, a
    parent that is not writable, a file system without hard links), the files are moved in one by one: the old `last`
    goes first and the new one comes last, so that no mixture is taken for a checkpoint.

    Args:
        target: the directory; need not exist. A link is followed.
        is_replaced: whether a file of this name belongs to the old contents and goes away.
        last: the name of a file without which nothing reads the others.

    Raises:
        NotADirectoryError: `target` is a file.
        OSError: writing or renaming fails.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where the directory should", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    clean_up(target)
    staging = _make_staging(target)
    try:
        yield staging
        _sync_tree(staging)
        if not target.exists():
            os.rename(staging, target)
        elif any(is_replaced(entry.name) for entry in os.scandir(target)) and _can_exchange(staging, target):
            _carry_over(target, staging, is_replaced)
            _exchange(staging, target)
            # What others wrote meanwhile, as Trainer's other processes do.
            _carry_over(staging, target, is_replaced)
        else:
            _move_in(staging, target, is_replaced, last)
        _sync(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def clean_up(target: Path) -> None:
    """Remove what saves of `target` that were killed on this machine left behind; put back what one moved away."""
    pattern = re.compile(
        rf"{re.escape(_prefix(target))}(?P<kind>saving|previous)-{re.escape(socket.gethostname())}-(?P<pid>\d+)-\w+"
    )
    for folder in (target.parent, target):
        for entry in list(os.scandir(folder)) if folder.is_dir() else []:
            match = pattern.fullmatch(entry.name)
            if match is None or _is_alive(int(match["pid"])):
                continue
            if match["kind"] == "previous" and not target.exists():
                os.rename(entry.path, target)
            else:
                shutil.rmtree(entry.path, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}."


def _beside(target: Path, folder: Path, kind: str) -> Path:
    name = f"{_prefix(target)}{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return folder / name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_staging(target: Path) -> Path:
    writable = os.access(target.parent, os.W_OK) and not os.path.ismount(target)
    staging = _beside(target, target.parent if writable else target, "saving")
    staging.mkdir()
    if target.exists():
        shutil.copymode(target, staging)
    return staging


def _can_exchange(staging: Path, target: Path) -> bool:
    if staging.parent != target.parent or os.path.ismount(target):
        return False
    # A process inside the directory would be left in the one that is removed.
    if target in (Path.cwd(), *Path.cwd().parents):
        return False
    probe = next(path for path in staging.iterdir() if path.is_file())
    try:
        os.link(probe, staging / ".link")
    except OSError:
        return False
    os.unlink(staging / ".link")
    return True


def _carry_over(source: Path, destination: Path, is_replaced: Callable[[str], bool]) -> None:
    """Link everything of `source` into `destination` that is not there and not `is_replaced`."""
    for entry in os.scandir(source):
        there = destination / entry.name
        if is_replaced(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            there.mkdir(exist_ok=True)
            shutil.copymode(entry.path, there)
            _carry_over(Path(entry.path), there, lambda name: False)
        elif not os.path.lexists(there):
            os.link(entry.path, there, follow_symlinks=False)


def _exchange(staging: Path, target: Path) -> None:
    """Swap two directories; where the system cannot, move the old one away first."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        paths = os.fsencode(staging), os.fsencode(target)
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_EXCHANGE:
            raise OSError(code, os.strerror(code), str(target))
    previous = _beside(target, target.parent, "previous")
    os.rename(target, previous)
    os.rename(staging, target)
    os.rename(previous, staging)


def _move_in(staging: Path, target: Path, is_replaced: Callable[[str], bool], last: str) -> None:
    new = {entry.name for entry in os.scandir(staging)}
    (target / last).unlink(missing_ok=True)
    for entry in list(os.scandir(target)):
        if is_replaced(entry.name) and entry.name not in new:
            os.unlink(entry.path)
    for name in sorted(new, key=lambda name: (name == last, name)):
        os.replace(staging / name, target / name)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
