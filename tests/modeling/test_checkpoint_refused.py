"""Checkpoints that do not fit are refused: by name, with what was found and expected, before anything is loaded."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seeklet.modeling import CheckpointError, SeekletModel, checkpoint
from tests.modeling.nano import build_ours
from tests.modeling.tensors import load

Tensors = dict[str, torch.Tensor]
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
EXPERT = "model.layers.2.mlp.experts.5.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build_ours(num_nextn_predict_layers=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_fp8")
    build_ours(num_nextn_predict_layers=1).save_pretrained(folder, block_fp8=True)
    return folder


def broken(source: Path, folder: Path, change: Callable[[Tensors], object], shards: int = 1) -> Path:
    """Return `folder` with a copy of the checkpoint `source` whose tensors `change` has changed."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refusal(folder: Path, **kwargs) -> str:
    """Return the message of the refusal; nothing may have been read into a model by then."""
    with pytest.raises(CheckpointError) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_plan", lambda *_: pytest.fail("loaded before everything was checked"))
        load(folder, **kwargs)
    return str(caught.value)


def set_tensor(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a missing tensor": (
        lambda tensors: tensors.pop(O_PROJ),
        f"{O_PROJ}: found no such tensor, expected a float dtype (40, 48)",
    ),
    "a missing expert": (
        lambda tensors: tensors.pop(EXPERT),
        f"{EXPERT}: found no such tensor, expected a float dtype (24, 40)",
    ),
    "an extra tensor": (
        set_tensor("model.layers.0.self_attn.lora_A.weight", torch.zeros(2, 3)),
        "model.layers.0.self_attn.lora_A.weight in model.safetensors: found F32 (2, 3), expected no such tensor",
    ),
    "an extra expert": (
        set_tensor("model.layers.2.mlp.experts.8.up_proj.weight", torch.zeros(24, 40)),
        "model.layers.2.mlp.experts.8.up_proj.weight in model.safetensors: found F32 (24, 40), expected no such tensor",
    ),
    "a bias the config does not have": (
        set_tensor("model.layers.0.self_attn.o_proj.bias", torch.zeros(40)),
        "model.layers.0.self_attn.o_proj.bias in model.safetensors: found F32 (40,), expected no such tensor",
    ),
    "a wrong shape": (
        set_tensor(O_PROJ, torch.zeros(48, 40)),
        f"{O_PROJ} in model.safetensors: found F32 (48, 40), expected a float dtype (40, 48)",
    ),
    "an expert of a wrong shape": (
        set_tensor(EXPERT, torch.zeros(40, 24)),
        f"{EXPERT} in model.safetensors: found F32 (40, 24), expected a float dtype (24, 40)",
    ),
    "integers": (
        set_tensor(O_PROJ, torch.zeros(40, 48, dtype=torch.int8)),
        f"{O_PROJ} in model.safetensors: found I8 (40, 48), expected a float dtype (40, 48)",
    ),
    "another fp8": (
        set_tensor(O_PROJ, torch.zeros(40, 48).to(torch.float8_e5m2)),
        f"{O_PROJ} in model.safetensors: found F8_E5M2 (40, 48), expected a float dtype (40, 48)",
    ),
    "fp8 without scales": (
        set_tensor(O_PROJ, torch.zeros(40, 48).to(torch.float8_e4m3fn)),
        f"{O_PROJ} in model.safetensors: found F8_E4M3 (40, 48) without scales, "
        f"expected its scales {O_PROJ}_scale_inv, F32 (1, 1), or an unscaled dtype",
    ),
    "scales without fp8": (
        set_tensor(f"{O_PROJ}_scale_inv", torch.ones(1, 1)),
        f"{O_PROJ} in model.safetensors: found F32 (40, 48), expected F8_E4M3, as it has scales",
    ),
    "part of the MTP module": (
        lambda tensors: [tensors.pop(f"model.layers.3.{name}.weight") for name in ("enorm", "mlp.gate")],
        "2 problems:\n  model.layers.3.enorm.weight: found no such tensor, expected a float dtype (40,)\n"
        "  model.layers.3.mlp.gate.weight: found no such tensor, expected a float dtype (8, 40)",
    ),
    "an MTP module without what makes it one": (
        lambda tensors: [
            tensors.pop(f"model.layers.3.{name}.weight")
            for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "embed_tokens")
        ],
        "4 problems:\n  model.layers.3.eh_proj.weight: found no such tensor, expected a float dtype (40, 80)",
    ),
    "no head, though the config says it was saved with one": (
        lambda tensors: tensors.pop("lm_head.weight"),
        "lm_head.weight: found no such tensor, expected a float dtype (97, 40)",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_named(saved: Path, tmp_path: Path, what: str) -> None:
    change, message = CHANGES[what]
    found = refusal(broken(saved, tmp_path, change))
    assert found.startswith(f"{tmp_path} does not fit SeekletForCausalLM: ")
    assert message in found


FP8_CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a missing scale": (
        lambda tensors: tensors.pop(f"{EXPERT}_scale_inv"),
        f"{EXPERT} in model.safetensors: found F8_E4M3 (24, 40) without scales, "
        f"expected its scales {EXPERT}_scale_inv, F32 (1, 1), or an unscaled dtype",
    ),
    "a scale of a wrong shape": (
        set_tensor(f"{EXPERT}_scale_inv", torch.ones(2, 1)),
        f"{EXPERT}_scale_inv in model.safetensors: found F32 (2, 1), expected F32 (1, 1), "
        "one per block of 128 x 128 of (24, 40)",
    ),
    "a scale of a wrong dtype": (
        set_tensor(f"{EXPERT}_scale_inv", torch.ones(1, 1).bfloat16()),
        f"{EXPERT}_scale_inv in model.safetensors: found BF16 (1, 1), expected F32 (1, 1)",
    ),
    "a weight of a wrong shape": (
        set_tensor(EXPERT, torch.zeros(40, 24).to(torch.float8_e4m3fn)),
        f"1 problem:\n  {EXPERT} in model.safetensors: found F8_E4M3 (40, 24), expected a float dtype (24, 40)",
    ),
}


@pytest.mark.parametrize("what", FP8_CHANGES)
def test_what_does_not_fit_in_fp8_is_named(saved_fp8: Path, tmp_path: Path, what: str) -> None:
    change, message = FP8_CHANGES[what]
    assert message in refusal(broken(saved_fp8, tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop(f"{O_PROJ}_scale_inv"),
            f"{O_PROJ}_scale_inv: found no such tensor, expected a float dtype (1, 1)",
        ),
        (
            set_tensor(f"{EXPERT}_scale_inv", torch.ones(2, 1)),
            f"{EXPERT}_scale_inv in model.safetensors: found F32 (2, 1), expected a float dtype (1, 1)",
        ),
    ],
)
def test_what_does_not_fit_in_kept_fp8_is_named(saved_fp8: Path, tmp_path: Path, change, message: str) -> None:
    assert message in refusal(broken(saved_fp8, tmp_path, change), keep_fp8=True)


def test_fp8_cannot_be_kept_where_there_is_none(saved: Path) -> None:
    assert "found no fp8 weights" in refusal(saved, keep_fp8=True)


def test_all_problems_are_counted_and_ten_are_listed(saved: Path, tmp_path: Path) -> None:
    names = [f"model.layers.1.mlp.experts.{expert}.gate_proj.weight" for expert in range(6)]
    names += [f"model.layers.2.mlp.experts.{expert}.down_proj.weight" for expert in range(6)]
    folder = broken(saved, tmp_path, lambda tensors: [tensors.pop(name) for name in names] + [tensors.pop(O_PROJ)])
    lines = refusal(folder).splitlines()
    assert lines[0].endswith("13 problems:")
    assert len(lines) == 12
    assert lines[-1] == "  … and 3 more"


def test_a_truncated_shard(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    message = refusal(folder)
    assert re.search(
        rf"{re.escape(str(shard))}: truncated: found {size - 1} bytes, expected at least {size} for", message
    )


def test_a_missing_shard(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards=3)
    (folder / "model-00003-of-00003.safetensors").unlink()
    assert f"{folder / 'model-00003-of-00003.safetensors'}: found no such file" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "(an empty file)"), (b"\x10" + bytes(7) + b"{" * 16, "corrupt header"), (b"PK\x03\x04 a zip", "PK")],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_that_is_something_else(saved: Path, tmp_path: Path, content: bytes, message: str, shards: int) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards)
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(content)
    found = refusal(folder)
    assert str(shard) in found
    assert message in found


def test_an_index_that_names_what_is_not_there(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    right = index["weight_map"][O_PROJ]
    wrong = {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)} - {right}
    index["weight_map"] |= {"model.layers.0.ghost.weight": right, O_PROJ: wrong.pop()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(folder)
    assert f"model.layers.0.ghost.weight in {right}: found no such tensor, expected it there, as the index" in message
    assert f"{O_PROJ} in {index['weight_map'][O_PROJ]}: found it in {right}, expected it there" in message


def test_a_tensor_in_two_shards(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards=2)
    for shard in folder.glob("*.safetensors"):
        save_file(load_file(shard) | {O_PROJ: torch.zeros(40, 48)}, shard, {"format": "pt"})
    assert f"{O_PROJ} in model-00002-of-00002.safetensors: found it in model-00001-of-00002.safetensors" in refusal(
        folder
    )


@pytest.mark.parametrize("text", ["{not json", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_a_corrupt_index(saved: Path, tmp_path: Path, text: str) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None, shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json: found a" in refusal(folder)


def test_pickles_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path, lambda tensors: None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin, expected safetensors files, which run no code" in refusal(folder, dtype=torch.float32)


def test_layers_too_many_are_no_mtp_modules(saved: Path, tmp_path: Path) -> None:
    def add_layer(tensors: Tensors) -> None:
        layer = {name: t for name, t in tensors.items() if name.startswith("model.layers.0.")}
        tensors.update({name.replace("layers.0.", "layers.4."): tensor.clone() for name, tensor in layer.items()})

    message = refusal(broken(saved, tmp_path, add_layer))
    assert re.search(r"model\.layers\.4\.\S+ in model.safetensors: found F32 \(.*\), expected no such tensor", message)


def test_leftovers_of_older_versions_are_passed_over(saved: Path, tmp_path: Path) -> None:
    leftovers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    folder = broken(saved, tmp_path, lambda tensors: tensors.update(leftovers))
    model, info = load(folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.lm_head.weight, load_file(saved / "model.safetensors")["lm_head.weight"])


def test_a_failed_read_names_the_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file shrinks after its header was checked."""
    folder = broken(saved, tmp_path, lambda tensors: None)
    whole = checkpoint.load_plan

    def shrink(*args):
        os.truncate(folder / "model.safetensors", 90_000)
        return whole(*args)

    monkeypatch.setattr(checkpoint, "load_plan", shrink)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \S+: the file became shorter: found nothing at"):
        load(folder, SeekletModel)
