"""`seeklet train --dry-run`: every number against arithmetic of its own, and nothing left behind."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.memory import Batch, Memory, count_optimizer_bytes, measure_memory
from seeklet.finetune.meta_model import build_meta_model
from seeklet.finetune.recipe import ModelSettings, as_yaml, load_recipe
from seeklet.finetune.steps import Steps, count_steps
from seeklet.finetune.trainer_settings import make_sft_config
from seeklet.modeling import SeekletConfig
from tests.finetune.conftest import PLAIN_TERMINAL, RunHere
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint, make_block_fp8

RECIPES = sorted((ROOT / "recipes").glob("sft_*.yaml"))
SUPPORT = ROOT / "recipes" / "sft_smollm2-135m_support_cpu.yaml"
EPOCHS = "trainer.num_train_epochs=5"


def test_dry_run_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    model = build_checkpoint("SmolLM2", tmp_path / "model")
    out = tmp_path / "out"
    overrides = (f"model.path={model}", f"output.dir={out}", "adapter.rank=4", EPOCHS)
    code, output, errors = run_here("train", SUPPORT, *overrides, "--dry-run")
    assert code == 0, errors
    assert not out.exists()
    lines = [line.strip() for line in output.splitlines()]
    # 50 conversations in the file; 5 epochs of ceil(44 / 4) steps.
    assert "train: 44 conversations, 5,302 tokens (57.3% trained on; longest 213)" in lines
    assert "validation: 6 conversations, 664 tokens (57.7% trained on; longest 124)" in lines
    assert "55 optimizer steps of 4 sequences, 11 an epoch; processes: 1" in lines
    # Rank 4, hidden 32, keys and values 16 wide: per layer q and o 4·(32+32), k and v 4·(32+16); two layers.
    attention = 2 * (2 * 4 * 64 + 2 * 4 * 48)
    dense_mlp = 2 * 3 * 4 * (32 + 48)
    vocabulary, hidden = 603, 32
    per_layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
    total = vocabulary * hidden + 2 * per_layer + 32 + attention + dense_mlp
    trained = attention + dense_mlp
    share = f"{trained / total:.2%}"
    assert f"{total:,} parameters ({total:,} in float32); {trained:,} trained ({share})" in lines
    assert f"Adapter: {trained:,} trained parameters, {share} of all" in lines
    # What is printed between the first two rules is the recipe, with what TRL and seeklet set where it says nothing.
    (tmp_path / "again.yaml").write_text(output.split("─\n")[1].split("\n─")[0])
    given, printed = load_recipe(SUPPORT, overrides), load_recipe(tmp_path / "again.yaml")
    assert replace(printed, trainer=given.trainer) == given
    assert printed.trainer.items() > given.trainer.items()
    assert printed.trainer["max_grad_norm"] == 1.0 and printed.trainer["load_best_model_at_end"] is True


@pytest.mark.slow
def test_dry_run_of_two_processes_is_told_once(tmp_path: Path) -> None:
    model = build_checkpoint("SmolLM2", tmp_path / "model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "seeklet.finetune"]
    process = subprocess.run(
        [*launch, "train", str(SUPPORT), f"model.path={model}", EPOCHS, "--dry-run"],
        cwd=ROOT,
        env=os.environ | PLAIN_TERMINAL,
        capture_output=True,
        encoding="utf-8",
    )
    assert process.returncode == 0, process.stderr
    # ceil(44 / (4 * 2)) steps an epoch.
    assert process.stdout.count("30 optimizer steps of 8 sequences, 6 an epoch; processes: 2") == 1
    assert process.stdout.count("Dry run") == 1


def test_what_is_printed_is_a_recipe_that_says_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    for file in RECIPES:
        recipe = load_recipe(file, ["evaluation.stop=['1e-4', 'no', '~', '0o7', ' x']", "trainer.adam_epsilon=1e-9"])
        (tmp_path / "again.yaml").write_text(as_yaml(recipe))
        assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("model", "override", "said"),
    [
        ("SmolLM2", "adapter.targets=[routed_experts]", "routed_experts"),
        ("SmolLM2", "moe.bias_update_speed=0.1", "moe.bias_update_speed is 0.1, but the model is a LlamaForCausalLM"),
        ("SmolLM2", "trainer.report_to=clearml", "trainer.report_to is clearml, which is not installed"),
        ("SmolLM2", "data.max_tokens=20", "too-long"),
        ("SmolLM2", "data.chat_template=nothing", "nothing"),
        ("Moonlight", "model.fp8=keep", "model.fp8: keep, but"),
    ],
)
def test_what_only_the_model_or_the_data_can_tell(
    model: str,
    override: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_here: RunHere,
) -> None:
    monkeypatch.chdir(ROOT)
    folder = build_checkpoint(model, tmp_path / "model")
    code, output, errors = run_here("train", SUPPORT, f"model.path={folder}", override, "--dry-run")
    assert (code, output) == (2, "")
    assert said in errors


def test_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    monkeypatch.chdir(ROOT)
    code, _, errors = run_here("train", SUPPORT, "model.path=nobody/nothing", "--dry-run")
    assert code == 2
    [line] = errors.splitlines()
    assert line.startswith("model.path: nobody/nothing: ")


@pytest.mark.parametrize(
    ("rows", "overrides", "num_processes", "expected"),
    [
        (44, (), 1, Steps(total=55, per_epoch=11, sequences=4)),
        (45, (), 1, Steps(total=60, per_epoch=12, sequences=4)),
        (10, ("trainer.gradient_accumulation_steps=2",), 1, Steps(total=10, per_epoch=2, sequences=8)),
        (10, ("trainer.dataloader_drop_last=true",), 1, Steps(total=10, per_epoch=2, sequences=4)),
        (10, ("trainer.max_steps=7",), 1, Steps(total=7, per_epoch=3, sequences=4)),
        (10, ("trainer.num_train_epochs=0.5",), 1, Steps(total=2, per_epoch=3, sequences=4)),
        (100, (), 8, Steps(total=20, per_epoch=4, sequences=32)),
        (3, ("trainer.dataloader_drop_last=true",), 1, Steps(total=5, per_epoch=1, sequences=4)),
    ],
)
def test_steps(
    rows: int, overrides: tuple[str, ...], num_processes: int, expected: Steps, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(ROOT)
    config = make_sft_config(load_recipe(SUPPORT, [EPOCHS, *overrides]), tmp_path)
    assert count_steps(config, rows, num_processes) == expected


def test_memory_counts_each_part() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(10, 20, bias=False), torch.nn.Linear(20, 5, bias=False))
    model[0].bfloat16().requires_grad_(False)
    # Twice the same parameter is held once.
    model.append(model[1])
    model.config = SeekletConfig(
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        qk_nope_head_dim=4,
        qk_rope_head_dim=2,
        v_head_dim=5,
        kv_lora_rank=6,
        q_lora_rank=7,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=9,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
    )
    per_token = 5 * 8 + 2 * (2 * 6 + 2 * 5 + 6 + 2 + 7) + 2 * 3 * 9
    whole = measure_memory(model, "adamw_torch", Batch(sequences=2, tokens=11, itemsize=2, checkpointing=False))
    assert whole == Memory(
        weights=200 * 2 + 100 * 4, gradients=400, optimizer=800, activations=2 * 11 * 3 * per_token * 2
    )
    thrifty = measure_memory(model, "adamw_bnb_8bit", Batch(sequences=1, tokens=1, itemsize=4, checkpointing=True))
    # Tensors of fewer than 4,096 numbers keep their states in fp32.
    assert thrifty == Memory(weights=800, gradients=400, optimizer=800, activations=4 * (3 * 8 + per_token))
    assert count_optimizer_bytes([torch.empty(64, 65)], "adamw_bnb_8bit") == 2 * (4160 + 17 * 4)
    unknown = measure_memory(model, "galore_adamw", Batch(1, 1, 4, True))
    assert unknown.optimizer is None
    assert unknown.total == 1200 + unknown.activations
    assert whole.shared(4) == Memory(200, 100, 200, whole.activations)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", ["Llama-3", "Qwen2.5", "Moonlight"])
def test_activations_are_about_what_autograd_saves(model: str, checkpointing: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_hidden_layers": 6}
    folder = build_checkpoint(model, tmp_path, **sizes)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    if checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept, saved = [], {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # Kept, so that no address is given twice.
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.model(input_ids=torch.randint(0, 256, (2, 200)), use_cache=False)
    estimate = measure_memory(network, "adamw_torch", Batch(2, 200, 4, checkpointing)).activations
    if checkpointing:
        # Beside what the forward pass leaves, one layer is computed anew in the backward pass.
        whole = measure_memory(network, "adamw_torch", Batch(2, 200, 4, False)).activations
        estimate -= whole // 6
    assert estimate == pytest.approx(sum(saved.values()), rel=0.35)


def test_deepseek_v3_is_counted_without_its_weights(tmp_path: Path) -> None:
    """671 billion parameters, 11.5 billion in the MTP module, and all but the small ones in one byte each."""
    config = SeekletConfig(num_nextn_predict_layers=1)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config.save_pretrained(tmp_path)
    model = build_meta_model(ModelSettings(path=str(tmp_path), dtype="bfloat16", fp8="keep"))
    main = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("model.layers.61."))
    assert main == 671_026_404_352
    held: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        held[parameter.dtype] = held.get(parameter.dtype, 0) + parameter.numel()
    assert held.keys() == {torch.float8_e4m3fn, torch.bfloat16}
    memory = measure_memory(model, "adamw_torch_fused", Batch(4, 4096, 2, True))
    assert 680e9 < memory.weights < 690e9


def test_fp8_is_kept_only_where_there_is_some(tmp_path: Path) -> None:
    folder = build_checkpoint("Moonlight", tmp_path)
    with pytest.raises(RecipeError, match="is not a block-fp8 checkpoint"):
        build_meta_model(ModelSettings(path=str(folder), fp8="keep"))
    kept = build_meta_model(ModelSettings(path=str(make_block_fp8(folder)), fp8="keep"))
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in kept.parameters()}
    assert {parameter.device.type for parameter in kept.parameters()} == {"meta"}
    expanded = build_meta_model(ModelSettings(path=str(folder), dtype="bfloat16"))
    assert {parameter.dtype for parameter in expanded.parameters()} == {torch.bfloat16}
