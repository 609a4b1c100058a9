"""What a model is served with: whether tokenizer, chat template and generation config go with the weights."""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .findings import Finding, error, warning
from .shards import Shards

GENERATION = "generation_config.json"
_CONVERSATION = [{"role": "user", "content": "Hello!"}]
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase | None, list[Finding]]:
    """Return the tokenizer in `folder`, or why there is none."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        return None, [error(names[0], "", "there is no tokenizer", "copy the base's, unchanged")]
    try:
        return AutoTokenizer.from_pretrained(folder), []
    # Files of any content come here, and each reader raises its own.
    except Exception as problem:
        said = next(iter(str(problem).strip().splitlines()), type(problem).__name__).replace(f"{folder}/", "")
        return None, [error(names[0], "", f"cannot be loaded: {said}", "copy the base's, unchanged")]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], shards: Shards) -> list[Finding]:
    """Return where tokenizer, embedding and config disagree, and what of the chat template does not render."""
    found = _check_sizes(tokenizer, config, shards)
    template = "chat_template.jinja"
    if not tokenizer.chat_template:
        mend = "copy the base's, or save the tokenizer with the one the model was trained with"
        return [*found, warning(template, "", "there is none, so that no engine can chat with the model", mend)]
    try:
        text = tokenizer.apply_chat_template(_CONVERSATION, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError, AttributeError, KeyError) as problem:
        line = getattr(problem, "lineno", None)
        wrong = f"does not render: {str(problem).splitlines()[0]}"
        return [*found, error(template, f"line {line}" if line else "", wrong, "copy the one it was trained with")]
    if _CONVERSATION[0]["content"] not in str(text):
        found.append(error(template, "", "leaves out what the user says", "copy the one it was trained with"))
    return found


def check_generation_config(folder: Path, config: dict[str, Any]) -> list[Finding]:
    """Return what is wrong with the generation config."""
    if not (folder / GENERATION).is_file():
        wrong = "is missing; engines take from it where an answer ends"
        return [error(GENERATION, "", wrong, "save the model with save_pretrained", fixable=True)]
    try:
        values = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
        GenerationConfig.from_pretrained(folder)
    except (ValueError, TypeError, OSError, AttributeError) as problem:
        wrong = f"cannot be read: {str(problem).splitlines()[0]}".replace(f"{folder}/", "")
        return [error(GENERATION, "", wrong, "save the model with save_pretrained")]
    vocab_size, found = config.get("vocab_size"), []
    for name in _TOKENS:
        tokens = values.get(name)
        for token in tokens if isinstance(tokens, list) else [tokens]:
            if isinstance(token, int) and isinstance(vocab_size, int) and not 0 <= token < vocab_size:
                wrong = f"is {token}, and the vocabulary has {vocab_size:,}"
                found.append(error(GENERATION, name, wrong, "take the tokenizer's"))
    if values.get("eos_token_id", config.get("eos_token_id")) is None:
        found.append(warning(GENERATION, "eos_token_id", "is missing: answers do not end", "take the tokenizer's"))
    return found


def _check_sizes(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], shards: Shards) -> list[Finding]:
    found = []
    names = [name for name in shards.tensors if name.endswith(("embed_tokens.weight", "wte.weight"))]
    rows = shards.tensors[names[0]].shape[0] if names else config.get("vocab_size")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(rows, int) and largest >= rows:
        # The token itself may be what should not be seen.
        wrong = f"has a token of number {largest:,}, and {names[0] if names else 'vocab_size'} has {rows:,} rows"
        mend = "publish the tokenizer the model was trained with, or resize the embedding and train on"
        found.append(error("tokenizer.json", names[0] if names else "vocab_size", wrong, mend))
    if names and isinstance(config.get("vocab_size"), int) and config["vocab_size"] != rows:
        wrong = f"is {config['vocab_size']:,}, and {names[0]} has {rows:,} rows"
        found.append(error("config.json", "vocab_size", wrong, f"set it to {rows}"))
    return found
