"""huggingface_hub, in this process or another, turned to a Hub of a test."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub.server import Hub


def turn_to(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub speak to this hub, with its caches below `home` and no token of the machine's."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(home / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(home / "home" / "xet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "home" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "home" / "stored_tokens"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def list_environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the variables that turn a process to this hub."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "home"),
        **({"HF_TOKEN": token} if token else {}),
    }
