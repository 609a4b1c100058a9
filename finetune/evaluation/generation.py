"""Greedy answers to many prompts, in batches padded on the left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What a model wrote to one prompt."""

    text: str
    """Without the token or text that ended it; reasoning and other special tokens are left in."""
    num_tokens: int
    """As generated, with the token that ended it."""
    finished: bool
    """Whether it ended by itself rather than at the limit."""


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    end_tokens: frozenset[int],
    stop: Sequence[str] = (),
    use_mtp: bool = False,
    on_rows: Callable[[int], None] = lambda number: None,
) -> list[Answer]:
    """Return the most likely answer to each prompt, token by token, in the order of the prompts.

    An answer ends with one of `end_tokens`, before one of the texts in `stop`, or after `max_new_tokens`. Prompts of
    similar length share a batch, longest first; `on_rows` is told how many each batch did. With `use_mtp` the model's
    multi-token-prediction modules draft, which changes the speed and not the answers.
    """
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    options: dict[str, Any] = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    options |= {"use_mtp": True} if use_mtp else {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            device = model.get_input_embeddings().weight.device
            inputs = _pad_left([prompts[index] for index in indices], min(end_tokens), device)
            tokens = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                # As a limit in the checkpoint's generation_config would count the prompt too.
                max_length=None,
                do_sample=False,
                num_beams=1,
                # Of sampling only; said, so that other values in the checkpoint's generation_config bring no warning.
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                eos_token_id=sorted(end_tokens),
                pad_token_id=min(end_tokens),
                **options,
            )
            for index, row in zip(indices, tokens[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[index] = read_answer(tokenizer, row, end_tokens, stop)
            on_rows(len(indices))
    finally:
        model.train(was_training)
    return [answers[index] for index in range(len(prompts))]


def read_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], end_tokens: frozenset[int], stop: Sequence[str] = ()
) -> Answer:
    """Return the answer in generated tokens, which may go on with padding after their end."""
    end = next((index for index, token in enumerate(tokens) if token in end_tokens), None)
    # Special tokens are kept: some tokenizers count <think> among them, and a stray one is part of what was written.
    text = str(tokenizer.decode(list(tokens[:end]), skip_special_tokens=False))
    cuts = [place for place in (text.find(ending) for ending in stop) if place >= 0]
    used = len(tokens) if end is None else end + 1
    return Answer(text[: min(cuts)] if cuts else text, used, finished=end is not None or bool(cuts))


def _pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    ids = [[*[pad] * (length - len(row)), *row] for row in rows]
    mask = [[*[0] * (length - len(row)), *[1] * len(row)] for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
