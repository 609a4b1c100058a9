"""Files that are there whole or not at all, however a process ends."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Give the path of a new file, to be written, which becomes `target` when the block ends.

    When the block raises, `target` is as it was; what a killed process leaves, `checkpoints.remove_unfinished` removes.
    A pipe or a device cannot be replaced, and is given itself.

    Raises:
        OSError: writing or renaming fails.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    target = Path(os.path.realpath(target))
    # With the suffix at the end, by which plots know what they are.
    beside = target.with_name(f".{target.stem}.saving-{secrets.token_hex(4)}{target.suffix}")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text`, in UTF-8, as the whole of `target`.

    Raises:
        OSError: it cannot be written.
    """
    with replaced_file(target) as beside:
        beside.write_text(text, encoding="utf-8")
