"""A Hub of the test's own that this process speaks to, and a folder to publish."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.finetune.publish.uploads import write_shards
from tests.hub.client import turn_to
from tests.hub.server import Hub, serve_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "hub") as hub:
        turn_to(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two shards, an index, a config and a card."""
    folder = tmp_path / "model"
    write_shards(folder, num_shards=2, shard_bytes=12_000_000)
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder
