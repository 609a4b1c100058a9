"""A Hub of the test's own, and huggingface_hub turned to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tests.hub.accounts import WRITE_TOKEN
from tests.hub.client import turn_to
from tests.hub.server import Hub, serve_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "hub") as hub:
        turn_to(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=constants.ENDPOINT, token=WRITE_TOKEN)
