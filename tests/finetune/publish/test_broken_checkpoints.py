"""Broken checkpoints: every kind is refused, the tensor or key is named, and each finding says how to mend it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from seeklet.finetune.publish.mend import mend
from seeklet.finetune.publish.preflight import Checks, Report, inspect
from seeklet.finetune.publish.shards import read_shards
from seeklet.finetune.publish.weight_pass import pass_over
from tests.finetune.publish.model_folders import build_model, copy, edit, names, tensors

Break = Callable[[Path], Any]
Q = "model.layers.1.self_attn.q_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"


def cut(file: str, num_bytes: int) -> Break:
    def apply(folder: Path) -> None:
        with (folder / file).open("r+b") as stream:
            stream.truncate((folder / file).stat().st_size - num_bytes)

    return apply


def overwrite(file: str, content: bytes) -> Break:
    return lambda folder: (folder / file).write_bytes(content)


def put(name: str, value: float) -> Break:
    return tensors(lambda held: held[name].view(-1)[5:6].fill_(value))


def rename_to_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def append_bytes(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(b"rest")


def to_fp8(held: dict[str, Any]) -> None:
    held[EXPERT] = held[EXPERT].to(torch.float8_e4m3fn)


def big_token(values: dict[str, Any]) -> None:
    values["model"]["vocab"]["zzzq"] = 9000


# What is broken: of which kind of folder, how, and the file and the tensor or key that must be named.
BROKEN: dict[str, tuple[str, Break, str, str]] = {
    "shard missing": ("sharded", lambda folder: (folder / SECOND).unlink(), SECOND, "model."),
    "shard truncated": ("sharded", cut(SECOND, 100), SECOND, "model."),
    "shard empty": ("sharded", overwrite(FIRST, b""), FIRST, ""),
    "header corrupt": ("dense", overwrite(WEIGHTS, (40).to_bytes(8, "little") + b"{" * 60), WEIGHTS, ""),
    "bytes at the end": ("dense", append_bytes, WEIGHTS, ""),
    "index is no JSON": ("sharded", overwrite(INDEX, b"{"), INDEX, ""),
    "index gone": ("sharded", lambda folder: (folder / INDEX).unlink(), INDEX, ""),
    "index names too many": ("sharded", edit(INDEX, lambda v: v["weight_map"].update(extra=FIRST)), INDEX, "extra"),
    "index names too few": ("sharded", edit(INDEX, lambda v: v["weight_map"].pop(Q)), "", Q),
    "index names another file": (
        "sharded",
        edit(INDEX, lambda v: v["weight_map"].update({Q: FIRST if v["weight_map"][Q] == SECOND else SECOND})),
        INDEX,
        Q,
    ),
    "tensor missing": ("dense", tensors(lambda held: held.pop(Q)), WEIGHTS, Q),
    "tensor too many": ("dense", tensors(lambda held: held.update(other=torch.ones(2))), WEIGHTS, "other"),
    "tensor of another shape": ("dense", tensors(lambda held: held.update({Q: torch.ones(8, 32)})), WEIGHTS, Q),
    "tensor of another dtype": ("dense", tensors(lambda held: held.update({Q: held[Q].half()})), WEIGHTS, Q),
    "tensor under an adapter's name": (
        "dense",
        tensors(lambda held: held.update({f"base_model.model.{Q}": held.pop(Q)})),
        WEIGHTS,
        Q,
    ),
    "expert missing": ("deepseek", tensors(lambda held: held.pop(EXPERT)), WEIGHTS, EXPERT),
    "expert of another shape": (
        "deepseek",
        tensors(lambda held: held.update({EXPERT: torch.ones(3, 32)})),
        WEIGHTS,
        EXPERT,
    ),
    "router bias missing": ("deepseek", tensors(lambda held: held.pop(BIAS)), WEIGHTS, BIAS),
    "fp8 without scale": ("deepseek", tensors(to_fp8), WEIGHTS, EXPERT),
    "NaN": ("dense", put(Q, float("nan")), WEIGHTS, Q),
    "infinity": ("dense", put("model.embed_tokens.weight", float("-inf")), WEIGHTS, "model.embed_tokens.weight"),
    "NaN in bf16": (
        "dense",
        lambda folder: (
            tensors(lambda held: held.update({name: held[name].bfloat16() for name in held}))(folder),
            put(Q, float("nan"))(folder),
            edit(CONFIG, lambda v: v.update(dtype="bfloat16"))(folder),
        ),
        WEIGHTS,
        Q,
    ),
    "fewer layers than weights": (
        "dense",
        edit(CONFIG, lambda v: v.update(num_hidden_layers=1, layer_types=None)),
        WEIGHTS,
        Q,
    ),
    "vocabulary of another size": (
        "dense",
        edit(CONFIG, lambda v: v.update(vocab_size=700)),
        WEIGHTS,
        "model.embed_tokens.weight",
    ),
    "unknown model type": ("dense", edit(CONFIG, lambda v: v.update(model_type="lama")), CONFIG, ""),
    "config is no JSON": ("dense", overwrite(CONFIG, b"{'a': 1}"), CONFIG, ""),
    "no architectures": ("dense", edit(CONFIG, lambda v: v.pop("architectures")), CONFIG, "architectures"),
    "stale quantization": (
        "deepseek",
        edit(CONFIG, lambda v: v.update(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})),
        CONFIG,
        "quantization_config",
    ),
    "auto_map": (
        "dense",
        edit(CONFIG, lambda v: v.update(auto_map={"AutoModel": "modeling_x.X"})),
        CONFIG,
        "auto_map",
    ),
    "no scoring_func": ("deepseek", edit(CONFIG, lambda v: v.pop("scoring_func")), CONFIG, "scoring_func"),
    "no topk_method": ("deepseek", edit(CONFIG, lambda v: v.pop("topk_method")), CONFIG, "topk_method"),
    "no moe_layer_freq": ("deepseek", edit(CONFIG, lambda v: v.pop("moe_layer_freq")), CONFIG, "moe_layer_freq"),
    "no rope_theta": ("deepseek", edit(CONFIG, lambda v: v.pop("rope_theta")), CONFIG, "rope_theta"),
    "MTP said and not there": (
        "deepseek",
        tensors(lambda held: [held.pop(name) for name in list(held) if name.startswith("model.layers.2.")]),
        CONFIG,
        "num_nextn_predict_layers",
    ),
    "MTP there and not said": (
        "deepseek",
        edit(CONFIG, lambda v: v.update(num_nextn_predict_layers=0)),
        CONFIG,
        "num_nextn_predict_layers",
    ),
    "tokenizer beyond the embedding": ("dense", edit("tokenizer.json", big_token), "tokenizer.json", "model.embed"),
    "no tokenizer": (
        "dense",
        lambda folder: [(folder / f"tokenizer{x}.json").unlink() for x in ("", "_config")],
        "tokenizer.json",
        "",
    ),
    "template does not parse": ("dense", overwrite("chat_template.jinja", b"{% for %}"), "chat_template.jinja", ""),
    "template leaves out the user": ("dense", overwrite("chat_template.jinja", b"hello"), "chat_template.jinja", ""),
    "no generation config": (
        "dense",
        lambda folder: (folder / "generation_config.json").unlink(),
        "generation_config.json",
        "",
    ),
    "end beyond the vocabulary": (
        "dense",
        edit("generation_config.json", lambda v: v.update(eos_token_id=[1, 99999])),
        "generation_config.json",
        "eos_token_id",
    ),
    "weights only as a pickle": ("dense", rename_to_pickle, "pytorch_model.bin", ""),
}
# Of these, what `--fix` mends.
MENDED = (
    *("stale quantization", "auto_map", "no scoring_func", "no topk_method", "no moe_layer_freq", "no rope_theta"),
    *("MTP said and not there", "MTP there and not said", "no generation config"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_models(tmp_path_factory.mktemp("models"))


def build_models(root: Path) -> dict[str, Path]:
    """Write the folders that are to be broken."""
    dense = build_model("Qwen3", root / "dense")
    sharded = copy(dense, root / "sharded")
    (sharded / WEIGHTS).unlink()
    AutoModelForCausalLM.from_pretrained(dense).save_pretrained(sharded, max_shard_size="120KB")
    return {"dense": dense, "sharded": sharded, "deepseek": build_model("DeepSeek-small", root / "deepseek")}


def test_whole_ones_are_fit(models: dict[str, Path]):
    for folder in models.values():
        report = inspect(folder, Checks(licence="mit"))
        assert report.is_fit, report.findings
    assert {FIRST, SECOND} <= set(inspect(models["sharded"], Checks(answer=False)).files)
    assert EXPERT in names(models["deepseek"] / WEIGHTS)


def is_named(report: Report, file: str, where: str) -> bool:
    """Return whether an error names the file, and the tensor or key in it."""
    return any(f.level == "error" and file in f.file and (where in f.where + f.wrong) for f in report.findings)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_one_is_refused(kind: str, models: dict[str, Path], tmp_path: Path):
    model, damage, file, where = BROKEN[kind]
    folder = copy(models[model], tmp_path / "model")
    damage(folder)
    report = inspect(folder, Checks(licence="mit", answer=False))
    assert not report.is_fit
    assert all(finding.mend and finding.wrong for finding in report.findings)
    assert is_named(report, file, where), "\n".join(map(str, report.findings))


@pytest.mark.parametrize("kind", MENDED)
def test_what_is_safe_is_mended(kind: str, models: dict[str, Path], tmp_path: Path):
    model, damage, _, _ = BROKEN[kind]
    folder = copy(models[model], tmp_path / "model")
    damage(folder)
    assert mend(folder, inspect(folder, Checks(licence="mit", answer=False)).findings)
    report = inspect(folder, Checks(licence="mit", answer=False))
    assert report.is_fit, report.findings


def test_metadata_is_mended_without_moving_a_weight(models: dict[str, Path], tmp_path: Path):
    folder = copy(models["dense"], tmp_path / "model")
    tensors(lambda held: None, {"source": "/" + "home/ada/runs/7"})(folder)
    before = (folder / WEIGHTS).read_bytes()
    mend(folder, inspect(folder, Checks(licence="mit", answer=False)).findings)
    after = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(before[:8], "little")
    assert after[start:] == before[start:] and len(after) == len(before)
    assert b"/" + b"home/ada" not in after and inspect(folder, Checks(licence="mit", answer=False)).is_fit


def test_weights_of_the_base_are_refused(models: dict[str, Path], tmp_path: Path):
    folder = copy(models["dense"], tmp_path / "model")
    checks = Checks(licence="mit", base=models["dense"], answer=False)
    report = inspect(folder, checks)
    assert [finding.where for finding in report.findings if "the base's" in finding.wrong]
    # One number of one tensor, far behind what is sampled.
    tensors(lambda held: held["lm_head.weight"].view(-1)[-1:].add_(1))(folder)
    assert inspect(folder, checks).is_fit


def test_a_model_that_answers_with_nan_is_refused(models: dict[str, Path], tmp_path: Path):
    folder = copy(models["dense"], tmp_path / "model")
    tensors(lambda held: held["model.norm.weight"].fill_(3e38))(folder)
    report = inspect(folder, Checks(licence="mit"))
    assert not report.is_fit, report.findings


@dataclass(frozen=True)
class Pass:
    """What one pass over weights took, in bytes."""

    num_bytes: int
    num_read: int
    num_read_by_process: int
    peak: int


def measure_pass(folder: Path, shard_bytes: int) -> Pass:
    """Write three shards of this size and return what one pass over them takes."""
    for part in range(3):
        held = {f"layer.{part}.{i}": torch.randn(shard_bytes // 8) for i in range(2)}
        save_file(held, folder / f"model-0000{part + 1}-of-00003.safetensors", {"format": "pt"})
    shards = read_shards(folder)
    num_bytes = sum(file.stat().st_size for file in shards.files)
    before, resident = _count("/proc/self/io", "rchar"), _reset_peak_memory()
    facts = pass_over(shards)
    read, peak = _count("/proc/self/io", "rchar") - before, _count("/proc/self/status", "VmHWM") * 1024 - resident
    for file in shards.files:
        assert facts.hashes[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    return Pass(num_bytes, facts.num_read, read, peak)


def test_each_byte_is_read_once_in_less_memory_than_a_shard(tmp_path: Path):
    shard_bytes = 80_000_000
    took = measure_pass(tmp_path, shard_bytes)
    assert took.num_bytes <= took.num_read <= 1.1 * took.num_bytes
    assert took.num_read_by_process <= 1.1 * took.num_bytes
    assert took.peak <= shard_bytes


def test_comparing_with_the_base_reads_little_more(models: dict[str, Path], tmp_path: Path):
    folder = copy(models["deepseek"], tmp_path / "model")
    tensors(lambda held: [tensor.add_(0.01) for tensor in held.values()])(folder)
    report = inspect(folder, Checks(licence="mit", base=models["deepseek"], answer=False))
    assert report.is_fit and report.num_read <= 1.1 * report.num_bytes


def _count(file: str, name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path(file).read_text().splitlines())
    return int(fields[name].split()[0])


def _reset_peak_memory() -> int:
    """Return the memory in use, in bytes, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")
    return _count("/proc/self/status", "VmRSS") * 1024
