"""Nano models that were taught what to say."""

from pathlib import Path

import pytest

from tests.finetune.chat.taught import TAUGHT, teach
from tests.finetune.nano_checkpoints import build_checkpoint


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model that reasons, then answers."""
    folder = build_checkpoint("Qwen2.5", tmp_path_factory.mktemp("taught"))
    teach(folder, "chatml", TAUGHT)
    return folder
