"""Every recipe, through its own command, for two steps on a nano model of its own architecture."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import seeklet  # noqa: F401
from seeklet.finetune.recipe import load_recipe
from tests.finetune.conftest import PLAIN_TERMINAL, RunHere
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint, make_block_fp8

RECIPES = sorted((ROOT / "recipes").glob("sft_*.yaml"))
# Rows that can be cut into blocks of 32 numbers.
QUANTIZABLE = {"intermediate_size": 64, "moe_intermediate_size": 32, "v_head_dim": 16}
# What a machine without a GPU cannot do as the recipe says. Two steps of small batches, each evaluated and saved.
HERE = (
    "model.device_map=null",
    "trainer.use_cpu=true",
    "trainer.bf16=false",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=1",
    # What several processes share, one holds.
    "trainer.expert_parallel=1",
    # Two steps of a learning rate that begins at 0 would be one.
    "trainer.warmup_steps=0",
    "trainer.logging_steps=1",
)


def run_there(*arguments: str) -> tuple[int, str]:
    """Return exit code and errors of the command in a process of its own."""
    command = [sys.executable, "-m", "seeklet.finetune", *arguments]
    done = subprocess.run(command, env=os.environ | PLAIN_TERMINAL, capture_output=True, encoding="utf-8")
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_two_steps(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file)
    model = build_checkpoint(recipe.model.path, tmp_path / "model", **QUANTIZABLE if recipe.model.quantization else {})
    if "DeepSeek-V3" in recipe.model.path:
        # As it is published.
        make_block_fp8(model)
    out = tmp_path / "out"
    arguments = ("train", f"recipes/{file.name}", f"model.path={model}", f"output.dir={out}", *HERE)
    # One as its own command says; the others here, where the models are imported already.
    code, said = run_there(*arguments) if file.stem.endswith("cpu") else run_here(*arguments)[::2]
    assert code == 0, said
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert losses.keys() == {1, 2}
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values())
    held_out = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert held_out and all(math.isfinite(loss) for loss in held_out)
    # B begins as zeros: whatever is not zero was trained, and the targets of the recipe were all reached.
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    trained = {name for name, tensor in adapter.items() if "lora_B" in name and tensor.abs().max() > 0}
    assert trained == {name for name in adapter if "lora_B" in name}
    assert recipe.adapter is not None
    if "routed_experts" in recipe.adapter.targets:
        assert any(".experts." in name for name in trained)
    if recipe.output.merge:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
        changed = {
            name
            for (name, before), after in zip(base.named_parameters(), merged.parameters(), strict=True)
            if not torch.equal(before, after)
        }
        assert any("q_proj" in name for name in changed) and any("down_proj" in name for name in changed)
        assert not any("norm" in name or "embed" in name for name in changed)
