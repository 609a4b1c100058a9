"""What an adapter on disk says of where its base is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from tests.finetune.lora.adapters import attached, build, saved_base
from tests.modeling.tensors import assert_same, load


def test_a_base_in_the_hubs_cache_is_named_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path of this machine is written, and the base is found all the same, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / "models--acme--base-1.5" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    saved_base(tmp_path / "base", build(num_nextn_predict_layers=0)).rename(snapshot)
    save_adapter(attached(load(snapshot, dtype=torch.float32), "attention"), tmp_path / "adapter")
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (found["base_model_name_or_path"], found["revision"]) == ("acme/base-1.5", commit)
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in (tmp_path / "adapter").iterdir())
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merge_adapter(tmp_path / "adapter", tmp_path / "by_path", base=snapshot)
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("merged", "by_path")))
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in (tmp_path / "merged").iterdir())
