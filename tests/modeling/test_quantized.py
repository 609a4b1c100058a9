"""Weights in 4 and 8 bits: read as such, worth what they stand for, and small."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seeklet.modeling.blockwise import QUANTIZATIONS, block_size, check_quantization, dequantize, quantize
from seeklet.modeling.errors import CheckpointError, ConfigError
from seeklet.modeling.expert_slices import ExpertSlice
from seeklet.modeling.quantized import QuantizedExperts, QuantizedLinear
from tests.modeling.fp8_checkpoint import EVEN, write_fp8
from tests.modeling.nano import draw_tokens, relative_error
from tests.modeling.quantizable import dequantized, double, load_quantized, write_base
from tests.modeling.tensors import assert_same, load

# The NF4 values of QLoRA (arXiv:2305.14314, appendix E), to four digits.
NF4 = (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0)
NF4 += (0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("quantized") / "base")


def test_nf4_rounds_to_the_nearest_of_its_values() -> None:
    matrix = torch.randn(6, 128)
    back = dequantize(*quantize(matrix, "nf4", 64), "nf4", torch.float32)
    scale = matrix.unflatten(1, (-1, 64)).abs().amax(-1, keepdim=True)
    levels = (scale[..., None] * torch.tensor(NF4)).expand(-1, -1, 64, -1)
    nearest = (levels - matrix.unflatten(1, (-1, 64))[..., None]).abs().argmin(-1, keepdim=True)
    expected = levels.gather(-1, nearest)[..., 0].flatten(1)
    assert (back - expected).abs().max() < 1e-3 * scale.max()


@pytest.mark.parametrize(("quantization", "allowed"), [("nf4", 0.1), ("fp4", 0.13), ("int8", 0.01)])
def test_what_is_lost(quantization: str, allowed: float) -> None:
    matrix = torch.randn(300, 1024)
    back = dequantize(*quantize(matrix, quantization, 64), quantization, torch.float32)  # pyright: ignore
    assert allowed / 10 < relative_error(back, matrix) < allowed


def test_rows_quantised_by_chunks_are_those_quantised_at_once() -> None:
    matrix = torch.randn(1000, 320).bfloat16()
    codes, largest = quantize(matrix, "nf4", 64)
    for row in (0, 409, 410, 999):
        one, scale = quantize(matrix[row : row + 1], "nf4", 64)
        assert torch.equal(codes[row], one[0]) and torch.equal(largest[row], scale[0])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_loading_is_quantising_each_published_tensor(base: Path, quantization: str) -> None:
    """What stays is bit by bit that of the plain model; what does not is what each matrix's own quantisation says."""
    ours, plain = load_quantized(base, quantization), load(base, dtype=torch.float32)
    moved = dict(plain.state_dict())
    for name, module in ours.named_modules():
        if not isinstance(module, QuantizedLinear | QuantizedExperts):
            continue
        for key, codes in module.named_parameters(recurse=False):
            dense, largest = moved.pop(f"{name}.{key}"), module.get_buffer(f"{key}_absmax")
            block = block_size(dense.shape[-1], name)
            flat = dense.flatten(0, -2)
            made, scale = quantize(flat, check_quantization(quantization), block)
            assert torch.equal(codes.flatten(0, -2), made) and torch.equal(largest.flatten(0, -2), scale), name
    kept = {name: tensor for name, tensor in ours.state_dict().items() if tensor.dtype != torch.uint8}
    assert all(torch.equal(kept[name], tensor) for name, tensor in moved.items())
    whole = ("embed_tokens", "lm_head", "mlp.gate.", "norm", "kv_b_proj", "eh_proj")
    assert all(any(part in name for part in whole) for name in moved)


def test_experts_in_one_tensor_are_quantised_one_by_one(base: Path, tmp_path: Path) -> None:
    """As a checkpoint has them that was saved under the names in memory."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("*.safetensors")
    save_file(dict(load(base, dtype=torch.bfloat16).state_dict()), file, metadata={"format": "pt"})
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(file))
    assert_same(load_quantized(tmp_path, "nf4").state_dict(), load_quantized(base, "nf4").state_dict())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_input_gradient_are_those_of_the_dequantised_model(
    base: Path, quantization: str, dtype: torch.dtype
) -> None:
    """Against float64, with an error of at most twice that of plain layers holding the same weights."""
    ours = load_quantized(base, quantization, dtype)
    plain = dequantized(base, ours, dtype)
    exact = double(plain)
    inputs, found = draw_tokens(2, 17), []
    for model in (exact, ours, plain):
        embedded = model.get_input_embeddings()(inputs).detach().requires_grad_()
        logits = model(inputs_embeds=embedded).logits
        logits.double().square().mean().backward()
        found.append((logits.detach(), embedded.grad))
    for truth, own, theirs in zip(*found, strict=True):
        assert relative_error(own, truth) <= 2 * relative_error(theirs, truth) + 1e-6


def test_from_block_fp8(tmp_path: Path) -> None:
    """The official format is dequantised matrix by matrix, then quantised: as its bf16 copy is."""
    sizes = EVEN | {"kv_lora_rank": 128, "q_lora_rank": 128, "v_head_dim": 32}
    folder = write_fp8(tmp_path / "fp8", sizes)
    load(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16", block_fp8=False)
    ours, other = (load(tmp_path / name, dtype=torch.bfloat16, quantize="nf4") for name in ("fp8", "bf16"))
    tensors, others = ours.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in others)
    assert sum(tensor.dtype == torch.uint8 for tensor in tensors.values()) > 10


def test_the_experts_take_under_a_third_of_their_bf16_bytes(base: Path) -> None:
    ours, plain = load_quantized(base, "nf4", torch.bfloat16), load(base, dtype=torch.bfloat16)
    sizes = [sum(t.nbytes for name, t in model.state_dict().items() if ".experts." in name) for model in (ours, plain)]
    # Blocks of 32 of down_proj take 5 bits a weight, those of 64 take 4.5 bits.
    assert sizes[0] < 0.3 * sizes[1]


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_magnitudes_quantised_too(base: Path, quantization: str) -> None:
    """The same codes; each magnitude within half a step of 255 to its row's largest, in 8 bits."""
    once = load(base, quantize=quantization, dtype=torch.float32)
    twice = load(base, quantize=quantization, dtype=torch.float32, quantize_twice=True)
    found, num_rows = 0, 0
    for name, module in twice.named_modules():
        for key, codes in module.named_parameters(recurse=False):
            if codes.dtype == torch.uint8:
                other = once.get_submodule(name)
                assert torch.equal(codes, other.get_parameter(key)), name
                largest, stored = other.get_buffer(f"{key}_absmax"), module.get_buffer(f"{key}_absmax")
                assert stored.dtype == torch.uint8 and stored.shape[-1] == largest.shape[-1] + 4
                top = largest.amax(-1, keepdim=True)
                kept = stored[..., -4:].contiguous().view(torch.float32)
                assert torch.equal(kept, top), name
                assert ((stored[..., :-4] * (top / 255) - largest).abs() <= top / 510 * 1.001).all(), name
                found, num_rows = found + largest.numel(), num_rows + top.numel()
    sizes = [sum(tensor.nbytes for tensor in model.state_dict().values()) for model in (once, twice)]
    assert found and sizes[0] - sizes[1] == 3 * found - 4 * num_rows


def test_what_is_lost_when_magnitudes_are_quantised_too() -> None:
    matrix = torch.randn(64, 2048)
    errors, sizes = [], []
    for twice in (False, True):
        codes, largest = quantize(matrix, "nf4", 64, twice)
        errors.append(relative_error(dequantize(codes, largest, "nf4", torch.float32), matrix))
        sizes.append(8 * (codes.nbytes + largest.nbytes) / matrix.numel())
    assert errors[1] < 1.005 * errors[0]
    assert sizes == [4.5, 4.140625]


def test_output_and_gradient_with_magnitudes_quantised_too(base: Path) -> None:
    ours = load(base, quantize="nf4", dtype=torch.float32, quantize_twice=True).train()
    plain = dequantized(base, ours)
    inputs, found = draw_tokens(2, 17), []
    for model in (ours, plain):
        embedded = model.get_input_embeddings()(inputs).detach().requires_grad_()
        logits = model(inputs_embeds=embedded).logits
        logits.square().mean().backward()
        found.append((logits.detach(), embedded.grad))
    for own, theirs in zip(*found, strict=True):
        assert relative_error(own, theirs) < 1e-5


def test_casting_leaves_the_codes(base: Path) -> None:
    ours = load_quantized(base, "nf4")
    before = {name: t.clone() for name, t in ours.state_dict().items() if t.dtype == torch.uint8 or "absmax" in name}
    ours.to(torch.bfloat16)
    after = ours.state_dict()
    assert before and all(after[name].dtype == t.dtype and torch.equal(after[name], t) for name, t in before.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantize": "nf3"}, "quantization is 'nf3'; allowed: nf4, fp4, int8"),
        ({"quantize": "nf4", "expert_slice": ExpertSlice(0, 2)}, "is 'nf4' and expert_slice is given too"),
        ({"quantize_twice": True}, "quantize_twice is given and quantize is not; allowed: both"),
        ({"quantize": "nf4", "keep_fp8": True}, "quantize is 'nf4' and keep_fp8 is given too; leave one of them out"),
    ],
)
def test_what_cannot_be_asked_for(base: Path, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(base, **given)


def test_rows_that_cannot_be_cut_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_base(tmp_path, moe_intermediate_size=24)
    with pytest.raises(
        ConfigError, match=r"down_proj cannot be quantised: its rows have 24 numbers; .* multiples of 32"
    ):
        load(folder, quantize="nf4")


def test_without_bitsandbytes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.modeling.blockwise.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'not installed; pip install "seeklet\[quantization\]"'):
        load(base, quantize="nf4")


def test_saving_the_quantised_weights_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save the adapter, and merge it"):
        load_quantized(base, "nf4").save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
