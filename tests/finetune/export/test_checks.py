"""What cannot be exported is said before anything is written: every finding at once, a line each, exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from seeklet.finetune.export import checks, export
from seeklet.finetune.export.converter_source import SCRIPT, Converter, read_converter
from seeklet.finetune.publish.staging import link_folder
from seeklet.modeling import SeekletError
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import build_checkpoint
from tests.finetune.publish.model_folders import edit

Damage = Callable[[Path], object]


def drop(*names: str) -> Damage:
    return edit("config.json", lambda config: [config.pop(name) for name in names])


def say(**values: object) -> Damage:
    return edit("config.json", lambda config: config.update(values))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "softmax": (drop("scoring_func"), "error: config.json: scoring_func: is missing; engines take another than"),
    "MTP depth": (say(num_nextn_predict_layers=0), "error: config.json: num_nextn_predict_layers: is 0, and the"),
    "no MTP depth": (drop("num_nextn_predict_layers"), "error: config.json: num_nextn_predict_layers: is missing, and"),
    "old rope": (say(rope_theta=1.0), "error: config.json: rope_theta: is 1.0, and rope_parameters say 10000.0"),
    "architecture": (
        say(architectures=["FooForCausalLM"]),
        "error: config.json: architectures: is FooForCausalLM, which",
    ),
    "quantisation": (
        say(quantization_config={"quant_method": "bitsandbytes"}),
        "error: config.json: quantization_config: says bitsandbytes, which the converter cannot expand; save the model",
    ),
    "plain query": (say(q_lora_rank=None), "error: config.json: q_lora_rank: is null with 2 layers: llama.cpp expects"),
    "compressed query": (say(num_hidden_layers=27), "error: config.json: q_lora_rank: is 24 with 27 layers: llama.cpp"),
    "rope": (
        say(rope_interleave=False),
        "error: config.json: rope_interleave: is false: llama.cpp rotates neighbouring",
    ),
    "groups": (say(n_group=4), "error: config.json: n_group: is 4 for 4 experts: llama.cpp stops where a group is one"),
    "stale fp8": (
        say(quantization_config={"quant_method": "fp8"}),
        "quantization_config: says fp8, and the weights are",
    ),
    "template": (
        lambda folder: (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        ),
        "error: chat_template.jinja: is none that seeklet has a Go template for; leave --ollama out: `llama-server",
    ),
    "shape": (say(moe_intermediate_size=24), "error: model.safetensors: model.layers.1.mlp.experts.0"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "error: tokenizer.json: there is no tokenizer; copy the base's",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "error: model.safetensors: there are no weights",
    ),
    "no config": (lambda folder: (folder / "config.json").write_text("{"), "error: config.json: cannot be read: "),
}


@pytest.fixture
def folder(small: Path, knowing: Converter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a copy of the nano model that may be damaged, with weights by link."""
    monkeypatch.setattr(export, "cached_converter", lambda: knowing)
    link_folder(small, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_said(name: str, folder: Path, run_here: RunHere) -> None:
    damage, expected = DAMAGES[name]
    damage(folder)
    code, text, errors = run_here("export", folder, "--ollama")
    assert code == 2 and not errors
    assert expected in text
    assert "Traceback" not in text and text.splitlines()[-1].startswith("Not fit to export: ")
    assert not folder.with_name("model-gguf").exists()


def test_all_at_once(folder: Path, run_here: RunHere) -> None:
    for name in ("softmax", "MTP depth", "architecture", "template"):
        DAMAGES[name][0](folder)
    code, text, _ = run_here("export", folder, "--ollama")
    assert code == 2
    assert all(DAMAGES[name][1] in text for name in ("softmax", "MTP depth", "architecture", "template"))
    assert "Not fit to export: 4 errors; nothing was written.\n" in text


def test_one_cause_does_not_fill_the_screen(folder: Path, run_here: RunHere) -> None:
    say(num_hidden_layers=9)(folder)
    _, text, _ = run_here("export", folder)
    lines = text.splitlines()
    assert len(lines) == 32 and lines[30].startswith("… and ") and lines[30].endswith(" more")
    num_shown, num_more = 30, int(lines[30].split()[2])
    assert sum(line.startswith("error: ") for line in lines) == num_shown
    num_errors = int(lines[31].removeprefix("Not fit to export: ").split()[0])
    assert 0 <= num_shown + num_more - num_errors <= 2


def test_fix_mends_a_copy(folder: Path, run_here: RunHere) -> None:
    for name in ("softmax", "MTP depth", "stale fp8"):
        DAMAGES[name][0](folder)
    before = (folder / "config.json").read_bytes()
    assert "(--fix does)" in run_here("export", folder, "--dry-run")[1]
    code, text, _ = run_here("export", folder, "--fix", "--dry-run")
    assert code == 0, text
    assert "mended: config.json: scoring_func: is missing" in text
    assert (folder / "config.json").read_bytes() == before


def test_a_tokenizer_of_ones_own(converter: Converter, run_here: RunHere, tmp_path: Path) -> None:
    folder = build_checkpoint("SmolLM2", tmp_path / "model")
    code, text, _ = run_here("export", folder)
    assert code == 2
    assert (
        "error: tokenizer.json: pre_tokenizer: is a byte-level tokenizer of its own, for which llama.cpp has no" in text
    )


def test_an_adapter_is_to_be_merged(converter: Converter, run_here: RunHere, tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x/y"}))
    code, text, _ = run_here("export", adapter)
    assert code == 2
    assert f"merge it first: seeklet merge {adapter} --out {tmp_path / 'run' / 'merged'}\n" in text


def test_types_that_there_are_not(small: Path, run_here: RunHere) -> None:
    code, _, errors = run_here("export", small, "--gguf", "q9_k")
    assert code == 2
    assert errors.startswith("--gguf q9_k: there is no such type; allowed: f32, f16, bf16, q8_0, tq1_0, tq2_0, q2_k, ")


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".hidden", "{ftype}"])
def test_names_that_are_none(name: str, small: Path, run_here: RunHere) -> None:
    code, _, errors = run_here("export", small, "--name", name)
    assert (code, errors) == (2, f"--name {name}: allowed are letters, digits, and - _ . between them\n")


def test_packages_that_are_missing(folder: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(checks, "has_quantizer", lambda: False)
    code, text, _ = run_here("export", folder, "--gguf", "q4_k_m")
    assert code == 2
    assert "error: gguf: the package sentencepiece is not installed; pip install 'seeklet[gguf]'\n" in text
    assert (
        "error: --gguf: q4_k_m: is written by llama.cpp's quantizer, which is not installed; pip install llama" in text
    )


def test_a_disk_that_is_too_small(
    folder: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """q4_k_m needs room for what it is made from, too."""
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    monkeypatch.setattr(checks, "has_quantizer", lambda: True)
    code, text, _ = run_here("export", folder, "--gguf", "f32", "--out", tmp_path / "new", "--dry-run")
    assert code == 0, text
    code, text, _ = run_here("export", folder, "--gguf", "q4_k_m", "--out", tmp_path / "new" / "deep")
    assert code == 2
    assert f"error: {tmp_path}: has 0.0 GB free, and about 0.0 GB are written; free some, or name another disk" in text
    (tmp_path / "file").write_text("")
    code, text, _ = run_here("export", folder, "--out", tmp_path / "file")
    assert code == 2 and f"{tmp_path / 'file'} is a file; name a folder: --out DIR" in text


def test_a_folder_that_is_not_there(run_here: RunHere, tmp_path: Path) -> None:
    code, _, errors = run_here("export", tmp_path / "nothing")
    assert code == 2 and errors.startswith(f"{tmp_path / 'nothing'}: there is no such folder; ")


def test_a_converter_that_is_none(small: Path, converter: Converter, run_here: RunHere, tmp_path: Path) -> None:
    code, _, errors = run_here("export", small, "--converter", tmp_path)
    assert (code, errors) == (2, f"{tmp_path}: holds no {SCRIPT}; name a checkout of llama.cpp\n")
    shutil.copy(converter.script, tmp_path)
    with pytest.raises(SeekletError, match=r"is another version of llama\.cpp than seeklet knows"):
        read_converter(tmp_path)
    assert read_converter(converter.script.parent) == read_converter(converter.script)
    assert {"DeepseekV3ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"} <= converter.architectures
    assert converter.types == tuple(checks.CONVERTED)
    assert "fp8" in converter.quantizations and len(converter.known_hashes) > 80


def test_without_a_network(small: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pip itself, with nothing to ask: what it says is a finding beside the others."""
    from seeklet.finetune.export import fetch_converter

    monkeypatch.setattr(fetch_converter, "_cache", lambda: tmp_path / "cache" / "converter")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(export, "cached_converter", fetch_converter.cached_converter)
    link_folder(small, tmp_path / "model")
    DAMAGES["softmax"][0](tmp_path / "model")
    code, text, _ = run_here("export", tmp_path / "model")
    assert code == 2
    assert "Fetching llama.cpp's converter once: 77 MB, llama-cpp-python 0.3.36 from PyPI.\n" in text
    assert (
        "error: llama.cpp: llama.cpp's converter could not be fetched with pip (llama-cpp-python 0.3.36, 77 MB): "
        in text
    )
    assert "; without a network, name a checkout of llama.cpp: --converter FOLDER\n" in text
    assert DAMAGES["softmax"][1] in text
    assert list((tmp_path / "cache").iterdir()) == []
