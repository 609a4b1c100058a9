"""llama.cpp's converter, if it is here, and nano models with DeepSeek-V3's tokenizer, which it knows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from seeklet.finetune.export.converter_source import Converter
from seeklet.finetune.export.fetch_converter import cached_converter
from tests.finetune.nano_checkpoints import DENSE, build_checkpoint, deepseek_tokenizer


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
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a nano Llama in bf16, as R1's distilled models are: DeepSeek's tokenizer in another architecture."""
    folder = tmp_path_factory.mktemp("dense") / "distilled"
    torch.manual_seed(0)
    config = LlamaConfig(**DENSE, vocab_size=len(deepseek_tokenizer()), bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    deepseek_tokenizer().save_pretrained(folder)
    return folder
