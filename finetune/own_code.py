"""Where code of the user's own is imported from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Import from the working folder, too, while the block runs."""
    # `python -m` puts the working folder on the import path, the command `seeklet` does not.
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)
