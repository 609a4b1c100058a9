"""Block-fp8 checkpoints read dequantised, for any number of rows, and written back bit by bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, FineGrainedFP8Config

from seeklet.modeling import CheckpointError, checkpoint_load
from seeklet.modeling.checkpoint_names import is_fp8_weight
from tests.modeling.fp8_checkpoint import EVEN, ODD, expected_weights, write_fp8
from tests.modeling.nano import build_ours, relative_error
from tests.modeling.tensors import assert_same, bits, config_of, load, read


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    return write_fp8(tmp_path_factory.mktemp("odd"), ODD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_values_are_code_times_scale_for_any_number_of_rows(odd: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(odd, dtype=dtype)
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path)
    written = read(tmp_path)
    assert written["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (144, 264)
    assert_same(written, expected_weights(odd, dtype))
    assert "quantization_config" not in config_of(tmp_path) and "auto_map" not in config_of(tmp_path)


@pytest.mark.parametrize("buffer", [1000, 70_000])
def test_weights_larger_than_the_buffer(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    monkeypatch.setattr(checkpoint_load, "BUFFER_BYTES", buffer)
    load(odd, dtype=torch.float32).save_pretrained(tmp_path)
    assert_same(read(tmp_path), expected_weights(odd, torch.float32))


def test_what_a_config_says_of_its_origin_is_not_written(odd: Path, tmp_path: Path) -> None:
    model = load(odd)
    model.config.quantization_config = config_of(odd)["quantization_config"]
    model.config.auto_map = {"AutoModel": "modeling.X"}
    model.save_pretrained(tmp_path)
    assert not {"quantization_config", "auto_map"} & config_of(tmp_path).keys()
    assert model.config.quantization_config == config_of(odd)["quantization_config"]


def test_the_default_dtype_is_that_of_the_config_or_bfloat16(odd: Path, tmp_path: Path) -> None:
    assert load(odd).dtype == torch.bfloat16
    for file in odd.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {name: value for name, value in config_of(odd).items() if name != "dtype"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_values_are_those_of_transformers_where_it_can(tmp_path: Path) -> None:
    """It divides rows by scale rows, which is right for multiples of 128 only."""
    folder = write_fp8(tmp_path, EVEN)
    config = FineGrainedFP8Config(dequantize=True)
    stock = DeepseekV3ForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    ours = load(folder, quantization_config=config, dtype=torch.bfloat16)
    assert_same(ours.state_dict(), stock.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_was_not_trained_is_written_bit_by_bit(odd: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(odd, dtype=dtype)
    model.save_pretrained(tmp_path / "same", block_fp8=True, max_shard_size="500KB")
    original = read(odd)
    if dtype == torch.float32:
        original = {
            name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in original.items()
        }
    assert_same(read(tmp_path / "same"), original)
    assert config_of(tmp_path / "same")["quantization_config"] == config_of(odd)["quantization_config"]
    with torch.no_grad():
        model.model.layers[1].mlp.experts.gate_up_proj[2, 450, 130] += 1
    model.save_pretrained(tmp_path / "trained", block_fp8=True)
    written = read(tmp_path / "trained")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    different = {n for n, tensor in written.items() if not torch.equal(bits(tensor), bits(original[n]))}
    assert different == {name, f"{name}_scale_inv"}
    changed = written[f"{name}_scale_inv"] != original[f"{name}_scale_inv"]
    assert changed.nonzero().tolist() == [[0, 1]]


def test_what_was_never_fp8_is_written_as_deepseek_does(tmp_path: Path) -> None:
    model = build_ours(**ODD).bfloat16()
    model.save_pretrained(tmp_path, block_fp8=True)
    written = read(tmp_path)
    fp8 = {name for name, tensor in written.items() if tensor.dtype == torch.float8_e4m3fn}
    assert fp8 == {name for name in written if is_fp8_weight(name)}
    assert {f"{name}_scale_inv" for name in fp8} == {name for name in written if name.endswith("_scale_inv")}
    assert written["model.layers.3.eh_proj.weight"].dtype == torch.bfloat16
    loaded = load(tmp_path)
    for name, tensor in model.state_dict().items():
        # 3 bits of mantissa, and a block's small values are as coarse as 1/448/2^10 of its largest.
        assert relative_error(loaded.state_dict()[name], tensor) < 0.04, name


def test_scales_stay_powers_of_two_where_they_were(odd: Path, tmp_path: Path) -> None:
    tensors = {
        name: torch.exp2(torch.floor(torch.log2(tensor))) if name.endswith("_scale_inv") else tensor
        for name, tensor in read(odd).items()
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = config_of(odd)
    config["quantization_config"]["scale_fmt"] = "ue8m0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load(tmp_path)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(1.7)
    model.save_pretrained(tmp_path / "out", block_fp8=True)
    assert config_of(tmp_path / "out")["quantization_config"]["scale_fmt"] == "ue8m0"
    for name, scale in read(tmp_path / "out").items():
        if name.endswith("_scale_inv"):
            assert torch.equal(torch.log2(scale).round(), torch.log2(scale)), name


def test_weights_that_are_not_finite_are_refused(odd: Path, tmp_path: Path) -> None:
    model = load(odd)
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj[3, 0, 0] = float("nan")
    message = r"model\.layers\.2\.mlp\.experts\.3\.down_proj\.weight: an infinity or a NaN"
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "m", block_fp8=True)
    assert not (tmp_path / "m").exists()


def test_fp8_through_another_quantiser_is_refused(odd: Path) -> None:
    with pytest.raises(CheckpointError, match="block-fp8 cannot be loaded with a transformers quantiser, a key_m"):
        load(odd, key_mapping={"a": "b"})
