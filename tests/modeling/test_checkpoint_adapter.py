"""Adapters through transformers' own PEFT support: loaded with, onto and from the base model, and saved alone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from seeklet.modeling import SeekletForCausalLM
from tests.modeling.nano import build_ours, draw_tokens
from tests.modeling.tensors import load

TARGETS = ["q_a_proj", "o_proj"]


@pytest.fixture(params=[False, True], ids=["bf16", "kept fp8"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.Tensor, dict[str, Any]]:
    """Return a folder with `base` and `adapter`, the logits of both together, and how to load the base."""
    build_ours(num_nextn_predict_layers=1).save_pretrained(tmp_path / "base", block_fp8=request.param)
    arguments: dict[str, Any] = {"keep_fp8": True} if request.param else {}
    base = load(tmp_path / "base", dtype=torch.float32, **arguments)
    peft = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    logits = peft.eval()(input_ids=draw_tokens(2, 7)).logits
    peft.save_pretrained(str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    return tmp_path, logits, arguments


def assert_adapted(model: Any, logits: torch.Tensor) -> None:
    assert type(model) is SeekletForCausalLM
    torch.testing.assert_close(model(draw_tokens(2, 7)).logits, logits, rtol=1e-5, atol=1e-5)


def test_the_folder_of_an_adapter_loads_with_its_base(adapted: tuple[Path, torch.Tensor, dict[str, Any]]) -> None:
    folder, logits, arguments = adapted
    for auto in (SeekletForCausalLM, AutoModelForCausalLM):
        assert_adapted(load(folder / "adapter", auto, dtype=torch.float32, **arguments), logits)


def test_an_adapter_is_loaded_onto_a_model(adapted: tuple[Path, torch.Tensor, dict[str, Any]]) -> None:
    folder, logits, arguments = adapted
    model = load(folder / "base", dtype=torch.float32, **arguments)
    plain = model(draw_tokens(2, 7)).logits
    assert (plain - logits).abs().max() > 1e-2
    model.load_adapter(str(folder / "adapter"))
    assert_adapted(model, logits)
    # What is saved then is the adapter alone, by transformers.
    model.save_pretrained(folder / "again")
    assert "adapter_model.safetensors" in os.listdir(folder / "again")
    assert "model.safetensors" not in os.listdir(folder / "again")
