"""A published config.json is read as ours by our own classes, without a word."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from seeklet.modeling import SeekletConfig
from tests.modeling.nano import SIZES


@pytest.mark.parametrize("model_type", ["deepseek_v3", "kimi_k2", "seeklet"])
@pytest.mark.parametrize("load", [SeekletConfig.from_pretrained, AutoConfig.from_pretrained])
def test_published_model_types_are_ours(
    model_type: str, load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": model_type}), encoding="utf-8")
    config = load(tmp_path)
    assert isinstance(config, SeekletConfig)
    assert (config.model_type, config.hidden_size) == ("seeklet", SIZES["hidden_size"])
    assert caplog.messages == []


def test_another_model_type_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "deepseek_v2"}), encoding="utf-8")
    SeekletConfig.from_pretrained(tmp_path)
    assert "You are using a model of type `deepseek_v2`" in "".join(caplog.messages)
