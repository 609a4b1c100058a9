"""Recipes that train adapters on a base in 4 or 8 bits, by the command line: resumed, merged, evaluated, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seeklet.finetune.dry_run import trained_model
from seeklet.finetune.lora.files import load_adapter
from seeklet.finetune.recipe import load_recipe
from seeklet.finetune.training_model import build_training_model
from seeklet.modeling.expert_slices import whole_sizes
from seeklet.modeling.kernels.block_fp8.reference import quantize
from seeklet.modeling.quantized import QuantizedExperts
from tests.finetune.conftest import RunHere
from tests.finetune.sft_runs import run, start, write_recipe
from tests.modeling.nano import draw_tokens, relative_error
from tests.modeling.quantizable import SIZES
from tests.modeling.tensors import load

MOE: dict[str, Any] = {name: size for name, size in SIZES.items() if name != "balance_loss_weight"}
ADAPTER = {"targets": ["attention", "shared_experts", "routed_experts"], "rank": 2, "alpha": 8, "dropout": 0.1}
NF4 = {"quantization": "nf4"}


def qlora(folder: Path, **sections: Any) -> Path:
    """Write a recipe that trains an adapter on the routed experts in nf4, the state of its optimizer in 8 bits."""
    given = {"adapter": ADAPTER, "model": NF4, "trainer": {"optim": "adamw_8bit"}} | sections
    return write_recipe(folder, sizes=MOE, **given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run, merged."""
    folder = tmp_path_factory.mktemp("qlora")
    run(qlora(folder, output={"merge": True}))
    return folder


def test_killed_and_resumed_it_is_the_same_bit_by_bit(trained: Path, tmp_path: Path) -> None:
    recipe = qlora(tmp_path, output={"merge": True})
    process = start(recipe, kill=("step", 5))
    process.join(120)
    assert process.exitcode == -9
    run(recipe, resume=True)
    assert_adapters_same(tmp_path / "run", trained / "run")


def assert_adapters_same(actual: Path, expected: Path) -> None:
    """Assert the same adapters and the same merged model, to the last bit."""
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        ours, theirs = load_file(actual / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_what_is_trained_is_quantised(trained: Path) -> None:
    model = build_training_model(load_recipe(trained / "recipe.yaml"))
    quantised = [module for module in model.modules() if isinstance(module, QuantizedExperts)]
    assert len(quantised) == 2
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} >= {
        "q_b_proj",
        "experts",
    }


def test_the_merged_model_is_the_checkpoints_own_weights_and_the_adapter(trained: Path) -> None:
    merged, base = load(trained / "run" / "merged"), load(trained / "model")
    changed = {name: relative_error(merged.state_dict()[name], tensor) for name, tensor in base.state_dict().items()}
    experts = [error for name, error in changed.items() if ".experts." in name and "layers.2" not in name]
    assert experts and all(error > 0 for error in experts)
    assert {error for name, error in changed.items() if "norm" in name or "embed" in name} == {0}
    expected = load_adapter(base, trained / "run" / "adapter").eval()(draw_tokens(2, 9)).logits
    assert relative_error(merged.eval()(draw_tokens(2, 9)).logits, expected) < 1e-5
    assert "quantization_config" not in json.loads((trained / "run" / "merged" / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_merged_by_recipe_in_another_dtype(trained: Path, tmp_path: Path, dtype: str, run_here: RunHere) -> None:
    """As the command writes it: the checkpoint's weights and the adapter, in whole, then rounded or in fp8 blocks."""
    run(qlora(tmp_path, output={"merge": True, "merge_dtype": dtype}))
    ours = load_file(tmp_path / "run" / "merged" / "model.safetensors")
    merged = load_file(trained / "run" / "merged" / "model.safetensors")
    option = ("--fp8",) if dtype == "fp8" else ("--dtype", "bfloat16")
    code, _, errors = run_here("merge", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "again"), *option)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert code == 0 and again.keys() == ours.keys(), errors
    assert all(torch.equal(again[name].view(torch.uint8), t.view(torch.uint8)) for name, t in ours.items())
    assert any(name.endswith("_scale_inv") for name in ours) == (dtype == "fp8")
    for name, tensor in merged.items():
        if f"{name}_scale_inv" in ours:
            codes, scale = quantize(tensor)
            assert torch.equal(ours[name].view(torch.uint8), codes.view(torch.uint8)), name
            assert torch.equal(ours[f"{name}_scale_inv"], scale), name
        else:
            kept = dtype == "fp8" or name.endswith("e_score_correction_bias")
            assert torch.equal(ours[name], tensor if kept else tensor.bfloat16()), name
    quantized = json.loads((tmp_path / "run" / "merged" / "config.json").read_text()).get("quantization_config", {})
    assert quantized.get("quant_method") == ("fp8" if dtype == "fp8" else None)


def test_the_adapter_is_evaluated_and_answers(trained: Path, run_here: RunHere) -> None:
    code, _, errors = run_here("evaluate", str(trained / "recipe.yaml"))
    assert code == 0, errors
    assert "loss (nats per token)" in (trained / "run" / "evaluation.md").read_text()
    chatted = ("chat", str(trained / "run"), "--quantization", "nf4", "--prompt", "Where?", "--max-new-tokens", "3")
    code, _, errors = run_here(*chatted)
    assert code == 0 and "3 tokens" in errors, errors
    merged = trained / "again"
    code, _, errors = run_here("merge", str(trained / "run" / "adapter"), "--out", str(merged))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (merged, trained / "run" / "merged"))
    assert code == 0 and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), errors


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_other_models_by_transformers_own(tmp_path: Path, quantization: str, run_here: RunHere) -> None:
    """Their linear layers are bitsandbytes', and the loss falls; block-fp8 is not for them."""
    recipe = write_recipe(
        tmp_path,
        "HuggingFaceTB/SmolLM2-135M",
        sizes={"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2},
        model={"quantization": quantization},
        adapter={"targets": ["attention", "dense_mlp"], "rank": 2, "alpha": 8},
    )
    code, _, errors = run_here("train", str(recipe), "output.merge=true", "output.merge_dtype=fp8", "--dry-run")
    assert code == 2 and "output.merge_dtype is fp8, but" in errors and "allowed: auto, float32" in errors, errors
    kinds = {type(module).__name__ for module in build_training_model(load_recipe(recipe)).modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    run(recipe)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("adapter=null",), "model.quantization: nf4 freezes the weights, and without an adapter nothing is left to"),
        (
            ("model.fp8=keep",),
            "model.quantization: is nf4, and model.fp8 is keep; weights are held in one or",
        ),
        (
            ("model.double_quantization=true", "model.quantization=int8"),
            "and model.quantization is int8; it is for nf4",
        ),
        (("output.merge_dtype=fp8",), "output.merge_dtype: fp8 has no effect without output.merge: true"),
        (("model.quantization=nf5",), 'expected one of nf4, fp4, int8 or null, got "nf5"'),
        (("model.load_in_4bit=true",), "is model.quantization: nf4 (or fp4) here"),
    ],
)
def test_refused(tmp_path: Path, run_here: RunHere, changes: tuple[str, ...], said: str) -> None:
    code, _, errors = run_here("train", str(qlora(tmp_path)), *changes)
    assert code == 2 and said in " ".join(errors.split()), errors
    assert "Traceback" not in errors and not (tmp_path / "run").exists()


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_weights_are_counted_not_bytes(tmp_path: Path, run_here: RunHere, quantization: str) -> None:
    recipe = qlora(tmp_path)
    plain = build_training_model(load_recipe(recipe, ["model.quantization=null"]))
    total = sum(parameter.numel() for parameter in plain.parameters())
    code, said, errors = run_here("train", str(recipe), f"model.quantization={quantization}", "--dry-run")
    assert code == 0 and f"{total:,} parameters (" in said and f" in {quantization}); " in said, said + errors
    model = build_training_model(load_recipe(recipe, [f"model.quantization={quantization}"]))
    assert sum(size for _, size in whole_sizes(model)) == total


def test_scales_quantised_too(tmp_path: Path, run_here: RunHere) -> None:
    """The dry run counts the bytes that the model then has, and it trains."""
    recipe, double = qlora(tmp_path), ["model.double_quantization=true", "trainer.max_steps=2"]
    sizes = []
    for changes in ([], double):
        model = build_training_model(load_recipe(recipe, changes))
        sizes.append(sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]))
        meta = trained_model(load_recipe(recipe, changes))
        assert sum(tensor.nbytes for tensor in [*meta.parameters(), *meta.buffers()]) == sizes[-1]
    # Rows of one or two blocks gain nothing by it; those of a real model do (tests/modeling/test_quantized.py).
    assert sizes[1] != sizes[0]
    code, _, errors = run_here("train", str(recipe), *double)
    assert code == 0 and (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file(), errors


def test_a_paged_optimizer_without_a_gpu(tmp_path: Path, run_here: RunHere, caplog: pytest.LogCaptureFixture) -> None:
    recipe = qlora(tmp_path)
    build_training_model(load_recipe(recipe, ["trainer.optim=paged_adamw_8bit"]))
    assert "paged_adamw_8bit pages nothing without a GPU" in caplog.text
    code, _, errors = run_here("train", str(recipe), "trainer.optim=paged_ademamix_8bit")
    assert code == 2 and "paged_ademamix_8bit needs a GPU" in errors and "allowed here: ademamix_8bit" in errors, errors


def test_rows_that_cannot_be_cut_into_blocks(tmp_path: Path, run_here: RunHere) -> None:
    recipe = write_recipe(tmp_path, adapter=ADAPTER, model=NF4)
    code, _, errors = run_here("train", str(recipe))
    assert code == 2 and "cannot be quantised: its rows have" in " ".join(errors.split()), errors


def test_without_bitsandbytes(tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(qlora(tmp_path))
    for module in ("seeklet.modeling.blockwise", "seeklet.finetune.quantization"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    for change, key in (("trainer.optim=adamw_torch", "model.quantization"), ("model.quantization=null", "optim")):
        code, _, errors = run_here("train", recipe, change)
        said = " ".join(errors.split())
        assert code == 2 and key in said and 'pip install "seeklet[quantization]"' in said, errors
