"""What is in the files: every weight, the keys that engines read, and nothing of multi-token prediction."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file

from seeklet.finetune.export import export as module
from seeklet.finetune.export.converter_source import Converter
from seeklet.finetune.export.fetch_converter import SIZE_MB, VERSION
from seeklet.finetune.export.gguf_file import GgufTensor, read_header
from seeklet.modeling.kernels.block_fp8.reference import dequantize as expand_fp8
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import deepseek_tokenizer, make_block_fp8
from tests.finetune.publish.model_folders import build_model, copy, edit, tensors

ROOT = Path(__file__).resolve().parents[3]
OWN_FILES = {"Modelfile-f32", "Modelfile-q8_0", "support-f32.gguf", "support-q8_0.gguf", ".seeklet-export.json"}
# What llama.cpp calls the parts of a layer. kv_b_proj is split by head into keys and values, see `expected_tensors`.
PARTS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}


def expected_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint under llama.cpp's names, MTP modules left out."""
    config, held = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, nope, value = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    found = {"token_embd.weight": held["model.embed_tokens.weight"], "output.weight": held["lm_head.weight"]}
    found["output_norm.weight"] = held["model.norm.weight"]
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in PARTS.items():
            if (name := f"model.layers.{layer}.{ours}") in held:
                found[f"blk.{layer}.{theirs}"] = held[name]
        both = held[f"model.layers.{layer}.self_attn.kv_b_proj.weight"].view(heads, nope + value, -1)
        found[f"blk.{layer}.attn_k_b.weight"] = both[:, :nope].transpose(1, 2)
        found[f"blk.{layer}.attn_v_b.weight"] = both[:, nope:]
        for part in ("gate", "up", "down"):
            names = [
                f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
                for expert in range(config["n_routed_experts"])
            ]
            if names[0] in held:
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = torch.stack([held[name] for name in names])
    return found


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the weights in a file; by our reading of its header, which a test compares with gguf's."""
    found = {}
    for name, tensor in read_header(file).tensors.items():
        raw = np.fromfile(file, np.uint8, tensor.num_bytes, offset=tensor.offset)
        found[name] = to_numbers(raw, tensor).reshape(tensor.shape)
    return found


def to_numbers(raw: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    kind = GGMLQuantizationType(tensor.kind)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return raw.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
    return dequantize(raw.reshape(math.prod(tensor.shape[:-1]), -1), kind)


@pytest.fixture(scope="module")
def exported(deepseek: Path, converter: Converter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the nano DeepSeek-V3 was exported to, twice, as f32 and q8_0."""
    from rich.console import Console

    from seeklet.finetune.export.export import ExportOptions, export

    before = {path.name: path.read_bytes() for path in deepseek.iterdir()}
    out = tmp_path_factory.mktemp("exported") / "gguf"
    outcome = export(deepseek, ExportOptions(["f32", "q8_0"], out, ollama=True, system="Be kind."), Console(quiet=True))
    assert {path.name for path in outcome.written} == OWN_FILES - {".seeklet-export.json"}
    assert {path.name: path.read_bytes() for path in deepseek.iterdir()} == before
    return out


@pytest.fixture
def converted(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what has been converted once be taken in place of another conversion, which takes eight seconds."""

    def convert(_: Converter, folder: Path, kind: str, name: str, out: Path, *rest: Any) -> None:
        shutil.copyfile(exported / f"support-{kind}.gguf", out)

    monkeypatch.setattr(module, "convert", convert)


@pytest.mark.slow
def test_f32_is_bit_for_bit(deepseek: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == OWN_FILES
    found, expected = read_tensors(exported / "support-f32.gguf"), expected_tensors(deepseek)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)


def check_header(file: Path) -> None:
    """Check what we read of a file against what gguf does, which takes seconds for a large vocabulary."""
    found, header = GGUFReader(file), read_header(file)
    assert {tensor.name for tensor in found.tensors} == header.tensors.keys()
    for tensor in found.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.offset, ours.num_bytes, ours.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert ours.shape == tuple(tensor.shape[::-1])
    scalars = {name: value for name, value in header.keys.items() if value is not None}
    assert scalars == {name: found.fields[name].contents() for name in scalars}
    assert len(scalars) > 20


def test_q8_0_is_within_its_step(deepseek: Path, exported: Path) -> None:
    """A block of 32 has one scale, its largest weight over 127, in half precision; short rows are in half precision."""
    found, expected = read_tensors(exported / "support-q8_0.gguf"), expected_tensors(deepseek)
    assert found.keys() == expected.keys()
    header = read_header(exported / "support-q8_0.gguf")
    types = {name: GGMLQuantizationType(tensor.kind).name for name, tensor in header.tensors.items()}
    num_quantized = 0
    for name, tensor in expected.items():
        want = tensor.numpy()
        if types[name] == "Q8_0":
            num_quantized += 1
            blocks, got = want.reshape(-1, 32), found[name].reshape(-1, 32)
            largest = np.abs(blocks).max(axis=1, keepdims=True)
            assert (np.abs(got - blocks) <= largest * (0.5 / 127 + 2**-11)).all(), name
            assert (got != blocks).any(), name
        elif types[name] == "F16":
            np.testing.assert_allclose(found[name], want, rtol=2**-11, atol=2**-25, err_msg=name)
        else:
            assert want.ndim == 1 or "ffn_gate_inp" in name, name
            np.testing.assert_array_equal(found[name], want, err_msg=name)
    assert num_quantized > 10


def test_keys_are_what_llama_cpp_reads(exported: Path) -> None:
    keys = read_header(exported / "support-f32.gguf").keys
    expected = {
        "general.architecture": "deepseek2",
        "general.name": "support",
        "deepseek2.block_count": 2,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_count": 4,
        "deepseek2.expert_used_count": 2,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_group_count": 2,
        "deepseek2.expert_group_used_count": 1,
        # Sigmoid; softmax is 1.
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_weights_scale": 2.5,
        "deepseek2.rope.freq_base": 10000.0,
        "deepseek2.rope.dimension_count": 8,
        "deepseek2.attention.kv_lora_rank": 16,
        "deepseek2.attention.q_lora_rank": 24,
        "deepseek2.attention.key_length_mla": 16,
        "deepseek2.attention.value_length_mla": 8,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert {name: keys.get(name) for name in expected} == expected


def test_what_the_gguf_file_does_not_add_the_template_does(exported: Path) -> None:
    """The tokenizer of the package adds no beginning, so that the template must."""
    written = (exported / "Modelfile-q8_0").read_text()
    assert written.startswith('FROM ./support-q8_0.gguf\nTEMPLATE """<｜begin▁of▁sentence｜>{{- if .System }}')
    assert written.endswith(
        '"""\nSYSTEM """Be kind."""\nPARAMETER temperature 0.7\nPARAMETER stop "<｜end▁of▁sentence｜>"\n'
        f'PARAMETER stop "{deepseek_tokenizer().convert_ids_to_tokens(128805)}"\nPARAMETER stop "<｜User｜>"\n'
        'PARAMETER stop "<｜Assistant｜>"\nLICENSE """The licence of the model."""\n'
    )


def test_a_rerun_replaces_its_own_files_and_no_others(
    deepseek: Path, exported: Path, converted: None, run_here: RunHere
) -> None:
    (exported / "notes.txt").write_text("mine")
    leftover = exported / ".support-f32.saving-00000000.gguf"
    leftover.write_bytes(b"half")
    (exported / "Modelfile").write_text("FROM ./support-q8_0.gguf\nSYSTEM Be brief.\n")
    arguments = ["export", deepseek, "--gguf", "q8_0", "--ollama", "--out", exported]
    code, text, _ = run_here(*arguments)
    assert code == 2
    assert f"error: {exported}/Modelfile: is not as an export left it; " in text
    assert (exported / "Modelfile").read_text().endswith("Be brief.\n")
    before = (exported / "support-q8_0.gguf").read_bytes()
    code, text, _ = run_here(*arguments, "--overwrite")
    assert code == 0, text
    assert "SYSTEM" not in (exported / "Modelfile").read_text()
    assert (exported / "support-q8_0.gguf").read_bytes() == before
    assert {path.name for path in exported.iterdir()} == OWN_FILES | {"Modelfile", "notes.txt"}
    assert (exported / "notes.txt").read_text() == "mine"


def test_a_dry_run_says_about_how_large_it_becomes(
    deepseek: Path, exported: Path, run_here: RunHere, tmp_path: Path
) -> None:
    code, text, _ = run_here("export", deepseek, "--gguf", "f32", "--out", tmp_path / "new", "--dry-run")
    assert code == 0 and not (tmp_path / "new").exists()
    size = (exported / "support-f32.gguf").stat().st_size / 1e6
    said = float(text.partition("support-f32.gguf, about ")[2].partition(" MB")[0])
    assert abs(said - size) < 2
    assert "warning: config.json: num_nextn_predict_layers: is 1: llama.cpp has no multi-token prediction" in text


def test_block_fp8_is_expanded(small: Path, knowing: Converter, run_here: RunHere, tmp_path: Path) -> None:
    folder = make_block_fp8(copy(small, tmp_path / "fp8"))
    code, text, _ = run_here("export", folder, "--gguf", "f32", "--converter", knowing.script)
    assert code == 0, text
    check_header(tmp_path / "fp8-gguf" / "fp8-f32.gguf")
    # Expanded here by our own reference; what `expected_tensors` splits and stacks is then the same.
    from safetensors.torch import save_file

    held = load_file(folder / "model.safetensors")
    scales = {name: held.pop(name) for name in list(held) if name.endswith("_scale_inv")}
    assert scales
    for name, scale in scales.items():
        weight = name.removesuffix("_scale_inv")
        held[weight] = expand_fp8(held[weight], scale, torch.float32)
    save_file(held, folder / "model.safetensors")
    found = read_tensors(tmp_path / "fp8-gguf" / "fp8-f32.gguf")
    for name, tensor in expected_tensors(folder).items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)


def test_another_architecture_in_bf16(knowing: Converter, run_here: RunHere, tmp_path: Path) -> None:
    dense = build_model("SmolLM2", tmp_path / "dense")
    tensors(lambda held: held.update({name: value.bfloat16() for name, value in held.items()}))(dense)
    edit("config.json", lambda config: config.update(dtype="bfloat16"))(dense)
    out = tmp_path / "out"
    arguments = ["--gguf", "bf16", "--out", out, "--fix", "--name", "mine", "--converter", knowing.script.parent]
    code, text, _ = run_here("export", dense, *arguments)
    assert code == 0, text
    check_header(out / "mine-bf16.gguf")
    found, held = read_tensors(out / "mine-bf16.gguf"), load_file(dense / "model.safetensors")
    assert read_header(out / "mine-bf16.gguf").keys["general.architecture"] == "llama"
    assert len(found) == len(held)
    for theirs, ours in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        want = held[f"model.layers.1.{ours}.weight"].float().numpy()
        np.testing.assert_array_equal(found[f"blk.1.{theirs}.weight"], want)


def test_commands_of_the_readme(
    deepseek: Path, converted: None, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder where the run's merged model is a nano model with a published tokenizer."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## GGUF for llama.cpp and Ollama\n")[1]
    section = section.split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    _, export, create = (shlex.split(line) for line in block.splitlines())
    run = tmp_path / export[2]
    shutil.copytree(deepseek.parent, run)
    monkeypatch.chdir(tmp_path)
    code, text, _ = run_here(*export[1:])
    assert code == 0, text
    assert export[0] == "seeklet" and create[:2] == ["ollama", "create"]
    modelfile = tmp_path / create[-1]
    weights = modelfile.read_text(encoding="utf-8").splitlines()[0].removeprefix("FROM ./")
    assert {path.name for path in modelfile.parent.iterdir()} == {"Modelfile", weights, ".seeklet-export.json"}
    assert f"{SIZE_MB} MB once" in section and VERSION in section
