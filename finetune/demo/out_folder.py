"""The folder that a run leaves behind: checked before the work, filled in one go when all of it is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from seeklet.modeling import SeekletError

# What tells an earlier run's folder from one that holds something else.
MARKER = "report.json"
_UNFINISHED = ".unfinished-"


class OutFolderError(SeekletError, OSError):
    """The folder cannot take the results; the message names it and says why."""


@contextmanager
def filled_when_done(out: Path) -> Iterator[Path]:
    """Give a scratch folder whose content moves into `out` when the body ends without an exception.

    Entries of an earlier run are replaced by those of the same name; nothing else in `out` is touched. After an
    exception, Ctrl-C included, `out` is as it was before.

    Raises:
        OutFolderError: `out` cannot be created or written, or holds files but no report of an earlier run.
    """
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [entry.name for entry in out.iterdir() if not entry.name.startswith(_UNFINISHED)]
        if others and MARKER not in others:
            raise OutFolderError(f"--out {out} holds files but no {MARKER} of an earlier run; name another folder")
        scratch = TemporaryDirectory(prefix=_UNFINISHED, dir=out)
    except OutFolderError:
        raise
    except OSError as error:
        raise OutFolderError(f"--out {out} cannot be written: {error.strerror or error}") from error
    try:
        with scratch as folder:
            results = Path(folder, "new")
            results.mkdir()
            yield results
            replaced = Path(folder, "old")
            replaced.mkdir()
            for entry in results.iterdir():
                if (out / entry.name).exists():
                    os.replace(out / entry.name, replaced / entry.name)
                os.replace(entry, out / entry.name)
    finally:
        if not existed and not any(out.iterdir()):
            out.rmdir()
