"""The demo's folder: refused where it holds something else, gone on with where a demo was interrupted, else emptied."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seeklet.modeling import SeekletError

from ..atomic_files import write_text
from ..evaluation.reasoning_report import STAGES_JSON, STAGES_MARKDOWN, STAGES_PLOT
from ..pipeline.settings import BEFORE, MANIFEST, REPORT, STAGE_NAME
from .settings import PIPELINE, DemoSettings

# Its presence tells a demo's folder from another; it says how far the demo is, and at the end what it found.
STATE = "demo.json"
DATA, GREEDY, MARKDOWN = "data", "greedy", "demo.md"
# What a demo writes beside the folders and recipes of stages, the manifest first: without it nothing is gone on with.
_WRITTEN = (
    *(MANIFEST, REPORT, STAGES_JSON, STAGES_MARKDOWN, STAGES_PLOT, MARKDOWN, PIPELINE),
    *(DATA, BEFORE, GREEDY),
)


class OutFolderError(SeekletError, OSError):
    """The folder cannot take the demo; the message names it and says why."""


def check_folder(folder: Path) -> None:
    """Check that a demo may work in a folder, before anything is written there.

    Raises:
        OutFolderError: it holds files and no demo, or cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutFolderError(f"--out {folder} cannot be used: {error.strerror or error}") from None
    if any(not name.startswith(".") for name in names) and read_state(folder) is None:
        raise OutFolderError(f"--out {folder} holds files and no demo; name a folder that is new or empty")


def goes_on(folder: Path, settings: DemoSettings, pipeline: str) -> bool:
    """Return whether a demo with the same settings and pipeline was interrupted there, and left something to use."""
    state = read_state(folder)
    if state is None or state["finished"] or state["settings"] != asdict(settings):
        return False
    file = folder / PIPELINE
    return (folder / MANIFEST).is_file() and file.is_file() and file.read_text(encoding="utf-8") == pipeline


def remove_demo(folder: Path) -> bool:
    """Return whether there was a demo, after removing what it wrote, and nothing else.

    Its state goes last, so that one who is killed here may go on.

    Raises:
        OSError: something cannot be removed.
    """
    state = read_state(folder)
    if state is None:
        return False
    stages = [each for name in state["stages"] for each in (name, f"{name}.yaml")]
    for name in (*_WRITTEN, *stages, STATE):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return True


def write_state(
    folder: Path, settings: DemoSettings, stages: Sequence[str], findings: dict[str, Any] | None = None
) -> None:
    """Write what the demo is told and, when it is done, what it found.

    Raises:
        OSError: it cannot be written.
    """
    state = {
        "finished": findings is not None,
        "settings": asdict(settings),
        "stages": list(stages),
        "findings": findings,
    }
    write_text(folder / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what `write_state` wrote, or None where there is none that can be read."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        is_ours = isinstance(state["settings"], dict) and isinstance(state["finished"], bool)
        # Names of folders that may be removed: they lead nowhere else.
        return state if is_ours and all(STAGE_NAME.fullmatch(name) for name in state["stages"]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
