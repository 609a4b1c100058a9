"""A pipeline in a process of its own, which may kill itself."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch

from seeklet.finetune import grpo, grpo_trainer
from seeklet.finetune.pipeline import manifest as manifests
from seeklet.finetune.pipeline import run_pipeline
from tests.finetune.sft_runs import KillAt, start_process


def run_and_die(path: Path, resume: bool, moment: str) -> None:
    """Run in this process, which kills itself behind a step of GRPO, or when the first stage has been noted as done."""
    torch.set_num_threads(1)
    if moment == "step":
        original = grpo_trainer.SeekletGRPOTrainer

        class Killed(original):
            def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any):
                super().__init__(*args, callbacks=[*callbacks, KillAt(2)], **kwargs)

        grpo.SeekletGRPOTrainer = Killed  # pyright: ignore[reportPrivateImportUsage]
    elif moment == "between":
        write = manifests.Manifest.write

        def write_and_die(self: manifests.Manifest, folder: Path) -> None:
            write(self, folder)
            if any(record.is_done for record in self.stages.values()):
                os.kill(os.getpid(), signal.SIGKILL)

        manifests.Manifest.write = write_and_die
    run_pipeline(path, resume=resume)


def run_killed(path: Path, resume: bool, moment: str) -> None:
    process = start_process(run_and_die, path, resume, moment)
    process.join()
    assert process.exitcode == (0 if moment == "never" else -signal.SIGKILL)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of the manifest in a folder."""
    return json.loads((folder / "manifest.json").read_text())
