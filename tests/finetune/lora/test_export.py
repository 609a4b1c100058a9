"""Adapters with a tensor for every expert: exactly the same model, merged expert by expert as an engine would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.export import export_per_expert
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from tests.finetune.lora.adapters import RANK, attached, build, saved_base, tokens
from tests.finetune.lora.hub import MODEL, serving
from tests.modeling.nano import SIZES, relative_error
from tests.modeling.tensors import assert_same, load, read

KINDS = ("attention", "dense_mlp", "shared_experts", "routed_experts", "mtp")
H, WIDTH, E = (SIZES[name] for name in ("hidden_size", "moe_intermediate_size", "n_routed_experts"))


def made(tmp_path: Path, *kinds: str, base: Path | None = None, **fields: Any) -> torch.Tensor:
    """Write `base` unless it is given, and `adapter`; return the logits of both together."""
    base = base or saved_base(tmp_path / "base", build())
    model = attached(load(base, dtype=torch.float32), *kinds, **fields)
    save_adapter(model, tmp_path / "adapter")
    return model.eval()(tokens()).logits


def change_config(folder: Path, **changes: Any) -> None:
    """Change fields of the adapter in `folder`."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def merge_by_name(base: Path, exported: Path, out: Path) -> None:
    """Add every `NAME.lora_B @ NAME.lora_A` to `NAME.weight`: all an engine knows."""
    model = load(base, dtype=torch.float32)
    model.save_pretrained(out)
    tensors, factors = read(base), load_file(exported / "adapter_model.safetensors")
    config = json.loads((exported / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    for key, a in factors.items():
        if ".lora_A." not in key:
            continue
        name = key.removeprefix("base_model.model.").replace(".lora_A.weight", "")
        assert name.rpartition(".")[2] in config["target_modules"]
        tensors[f"{name}.weight"] += scaling * factors[key.replace("lora_A", "lora_B")] @ a
    from safetensors.torch import save_file

    save_file(tensors, out / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kinds", [("routed_experts",), ("attention", "routed_experts"), KINDS])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_by_name_it_is_the_same_model(tmp_path: Path, kinds: tuple[str, ...], rslora: bool) -> None:
    expected = made(tmp_path, *kinds, rslora=rslora)
    export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    merge_by_name(tmp_path / "base", tmp_path / "exported", tmp_path / "merged")
    logits = load(tmp_path / "merged", dtype=torch.float32).eval()(tokens()).logits
    assert relative_error(logits, expected) < 2e-5


def test_names_and_shapes(tmp_path: Path) -> None:
    made(tmp_path, "routed_experts")
    export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    stored = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    shapes = {"gate_proj": (H, WIDTH), "up_proj": (H, WIDTH), "down_proj": (WIDTH, H)}
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{projection}.lora_{factor}.weight": shape
        for layer in (1, 2)
        for expert in range(E)
        for projection, (inner, outer) in shapes.items()
        for factor, shape in (("A", (RANK, inner)), ("B", (outer, RANK)))
    }
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert config["target_parameters"] is None


def test_what_no_engine_can_add_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "attention", "router")
    with pytest.raises(AdapterError, match=r"mlp.gate cannot be exported, engines do not take it; merge the adapter"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    made(tmp_path, "attention", modules_to_save=("lm_head",))
    with pytest.raises(AdapterError, match=r"lm_head.weight cannot be exported"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    made(tmp_path, "attention", "embed_tokens")
    with pytest.raises(AdapterError, match=r"embed_tokens.lora_embedding_A cannot be exported"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    made(tmp_path, "attention")
    change_config(tmp_path / "adapter", alpha_pattern={"o_proj": 2})
    with pytest.raises(AdapterError, match=r"alpha_pattern cannot be exported"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_moved_router_biases_are_refused(tmp_path: Path) -> None:
    made(tmp_path, "routed_experts")
    model = attached(load(tmp_path / "base", dtype=torch.float32), "routed_experts")
    model.get_base_model().model.layers[2].mlp.router.e_score_correction_bias[3] += 0.001
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"layers.2.mlp.gate.e_score_correction_bias was moved in training"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    other = saved_base(tmp_path / "other", build(num_hidden_layers=2, num_nextn_predict_layers=0))
    with pytest.raises(AdapterError, match=r"other/model.safetensors: found no tensor model.layers.2.mlp.gate.e_score"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported", base=other)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(AdapterError, match=r"base/model.safetensors: .*; expected a safetensors file"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=r"base, the base of .*adapter, is no folder here and not on the Hub"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "routed_experts")
    export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    with pytest.raises(AdapterError, match="exported is not empty"):
        export_per_expert(tmp_path / "adapter", tmp_path / "exported")
    export_per_expert(tmp_path / "adapter", tmp_path / "exported", overwrite=True)
    with pytest.raises(AdapterError, match="adapter is what is read"):
        export_per_expert(tmp_path / "adapter", tmp_path / "adapter", overwrite=True)


def test_a_base_on_the_hub_as_merge_takes_it(tmp_path: Path) -> None:
    """Of its weights, an export reads the files with router biases only; a merge then the rest."""
    build().save_pretrained(tmp_path / "base", max_shard_size="40KB")
    made(tmp_path, "attention", "routed_experts", base=tmp_path / "base")
    files = {file.name for file in (tmp_path / "base").iterdir()}
    change_config(tmp_path / "adapter", base_model_name_or_path=MODEL)
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())["weight_map"]
    biases = {file for name, file in index.items() if name.endswith("e_score_correction_bias")}
    code = (
        "from seeklet.finetune.lora.export import export_per_expert as export\n"
        "from seeklet.finetune.lora.merge import merge_adapter as merge\n"
        "export('adapter', 'exported'); print(); merge('adapter', 'merged')"
    )
    with serving(tmp_path / "base") as (address, sent):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | settings | {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    description = ["config.json", "model.safetensors.index.json"]
    assert sorted(sent[: 2 + len(biases)]) == sorted([*description, *biases])
    assert len(biases) < len(files) - 3 and sorted(sent) == sorted(files)
    change_config(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    export_per_expert(tmp_path / "adapter", tmp_path / "expected")
    name = "adapter_model.safetensors"
    assert_same(*(load_file(tmp_path / folder / name) for folder in ("exported", "expected")))
    merge_adapter(tmp_path / "adapter", tmp_path / "merged_here")
    assert_same(read(tmp_path / "merged"), read(tmp_path / "merged_here"))
