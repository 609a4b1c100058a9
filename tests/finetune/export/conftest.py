"""llama.cpp's converter, if it is here, and nano models with DeepSeek-V3's tokenizer or a small one."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from seeklet.finetune.export.converter_source import SCRIPT, Converter, read_converter
from seeklet.finetune.export.fetch_converter import cached_converter
from tests.finetune.nano_checkpoints import build_checkpoint
from tests.finetune.publish.model_folders import build_model


@pytest.fixture(scope="session")
def converter() -> Converter:
    """Return the converter; tests never fetch it."""
    found = cached_converter()
    if found is None:
        pytest.skip("llama.cpp's converter is not here; python -m seeklet.finetune.export.fetch_converter fetches it")
    return found


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a nano DeepSeek-V3 with one MTP module, biases that are not zero, and sampling of its own, of a run."""
    run = tmp_path_factory.mktemp("deepseek") / "support"
    folder = build_deepseek(run / "merged")
    (run / "recipe.yaml").write_text("{}\n")
    return folder


def build_deepseek(folder: Path, **sizes: Any) -> Path:
    """Write a nano DeepSeek-V3 whose router biases choose."""
    from safetensors.torch import load_file, save_file

    build_checkpoint("deepseek-ai/DeepSeek-V3", folder, **sizes)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name] = torch.randn(tensors[name].shape) * 0.1
    save_file(tensors, file, {"format": "pt"})
    GenerationConfig(bos_token_id=0, eos_token_id=[1, 128805], do_sample=True, temperature=0.7).save_pretrained(folder)
    (folder / "LICENSE").write_text("The licence of the model.\n")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a nano DeepSeek-V3 with a tokenizer of 600 tokens: the published one takes seconds to load and write."""
    return build_model("DeepSeek-small", tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def knowing(converter: Converter, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """Return a copy of the converter with one rule more: for tokenizers of nano models."""
    folder = tmp_path_factory.mktemp("knowing") / "llama.cpp"
    shutil.copytree(converter.script.parent, folder)
    base, before = folder / "conversion" / "base.py", "        res = None\n"
    text = base.read_text(encoding="utf-8")
    assert text.count(before) == 1
    rules = ""
    for model in (small, build_model("SmolLM2", folder.with_name("smollm2"))):
        tokens = str(AutoTokenizer.from_pretrained(model).encode(converter.probe))
        rules += f'        if chkhsh == "{sha256(tokens.encode()).hexdigest()}":\n            res = "deepseek-v3"\n'
    base.write_text(text.replace(before, before + rules), encoding="utf-8")
    return read_converter(folder / SCRIPT)
