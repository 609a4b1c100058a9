"""What is published in tests, and loaded again by processes that cannot import seeklet."""

import json
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.publish.publish import PublishOptions, publish
from tests.finetune.lora.adapters import settings
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.client import list_environment
from tests.hub.server import Hub


def write_adapter(base: Path, folder: Path, *groups: str) -> Path:
    """Write an adapter of these groups, which changes something, for `base`."""
    peft = attach(AutoModelForCausalLM.from_pretrained(base), settings(*groups))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    save_adapter(peft, folder)
    values = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def send(folder: Path, name: str, form: str = "merged", base: str = "alice/base", **options: bool) -> ModelCard:
    """Publish a folder as alice/`name`, and return its card."""
    outcome = publish(
        folder,
        f"alice/{name}",
        PublishOptions(form=form, base=base, licence="mit", answer=False, **options),  # pyright: ignore
    )
    assert outcome.published is not None, outcome.report.findings
    return ModelCard(outcome.card)


def run_without_seeklet(hub: Hub, home: Path, *command: str) -> str:
    """Return what Python prints that is turned to the hub, with a cache of its own."""
    variables = {"OMP_NUM_THREADS": "1", "PATH": "", **list_environment(hub, home / "reader", token=WRITE_TOKEN)}
    ran = subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, text=True, timeout=120, cwd=home
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout
