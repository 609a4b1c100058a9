"""Whether the model, loaded as anybody would load it, says something that is not plainly broken."""

import math
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from .findings import Finding, error, warning

_PROMPT = "Hello! What can you do?"
_NUM_TOKENS = 24
# Of the memory that is free: the model is loaded beside all else.
_SHARE_OF_MEMORY = 0.5
# Of the entropy of a uniform choice: a model that learned anything is far below.
_UNIFORM = 0.98


def check_answer(folder: Path, tokenizer: PreTrainedTokenizerBase, num_bytes: int) -> list[Finding]:
    """Return what is wrong with a short greedy answer; nothing is loaded where the memory is too small for it."""
    if num_bytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
        wrong = f"the weights ({num_bytes / 1e9:.0f} GB) do not fit the memory of this machine, so no answer was tried"
        return [warning("model.safetensors", "", wrong, "try the model once where it fits: seeklet chat FOLDER")]
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        tokens, entropy, finite = _answer(model, tokenizer)
    # Whatever loading or running raises here, it would raise for whoever downloads the model.
    except Exception as problem:
        said = next(iter(str(problem).strip().splitlines()), type(problem).__name__).replace(f"{folder}/", "")
        return [error("config.json", "", f"the model cannot be loaded and run: {said}", "mend what is named")]
    if not finite:
        return [error("model.safetensors", "lm_head", "answers with NaN", "go back to an earlier checkpoint")]
    if entropy > _UNIFORM * math.log(model.config.vocab_size):
        wrong = "every next token is as likely as any other: the weights look untrained, or were not all loaded"
        return [warning("model.safetensors", "", wrong, "try the model: seeklet chat FOLDER")]
    if len(tokens) == _NUM_TOKENS and len(set(tokens)) == 1:
        wrong = f"answers with {tokenizer.decode(tokens[:1])!r} over and over"
        return [warning("model.safetensors", "", wrong, "try the model: seeklet chat FOLDER")]
    return []


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any) -> tuple[list[int], float, bool]:
    """Return the tokens of an answer, the entropy of its first one in nats, and whether all numbers are such."""
    model.eval()
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": _PROMPT}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    else:
        text = _PROMPT
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)["input_ids"]
    logits = model(inputs).logits[0, -1].float()
    if not torch.isfinite(logits).all():
        return [], 0.0, False
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum().item()
    made = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=_NUM_TOKENS, do_sample=False)
    return made[0, inputs.shape[1] :].tolist(), entropy, True
