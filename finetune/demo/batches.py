"""From problems to tensors: prompts to generate from, and batches to train on with the prompt masked out."""

import random
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .task import Problem
from .tokenizer import PAD, VOCABULARY

IGNORE_INDEX = -100


def encode_prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> BatchEncoding:
    """Return `input_ids` and `attention_mask` (B, S) of the prompts, padded on the left, ready to generate from."""
    encoded = tokenizer.apply_chat_template(
        [[{"role": "user", "content": problem.prompt}] for problem in problems],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    return cast(BatchEncoding, encoded)


def encode_conversations(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, int64 (B, S), padded on the right.

    Labels are the token ids from `<think>` to the end-of-sentence token, which is included, and -100 elsewhere: on the
    user's turn, on the assistant's header, and on padding. Shifting them is the model's business. For the prompt `1+2`
    and a solution `<think>…`:

        tokens  <bos>  <｜User｜>   1     +     2   <｜Assistant｜>  <think> …  </answer>  <eos>  <pad>
        labels   -100     -100   -100  -100  -100       -100       <think> …  </answer>  <eos>   -100
    """
    conversations = [
        [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": problem.solution}]
        for problem in problems
    ]
    encoded = cast(
        BatchEncoding,
        tokenizer.apply_chat_template(conversations, return_dict=True, return_assistant_tokens_mask=True),
    )
    rows = encoded["input_ids"]
    ids = _stack(rows, VOCABULARY.index(PAD))
    is_answer = _stack(encoded["assistant_masks"], 0).bool()
    return {
        "input_ids": ids,
        "attention_mask": _stack([[1] * len(row) for row in rows], 0),
        "labels": torch.where(is_answer, ids, IGNORE_INDEX),
    }


def batches(problems: Sequence[Problem], size: int, seed: int, pool: int = 8) -> Iterator[Sequence[Problem]]:
    """Yield every problem once, in batches of `size` and of similar length; what does not fill a batch is left out.

    Each run of `pool` batches is sorted by length and its batches are then shuffled, which saves a third of the
    padding and still mixes lengths from step to step.
    """
    shuffle = random.Random(seed).shuffle
    for start in range(0, len(problems) - size + 1, size * pool):
        chunk = sorted(problems[start : start + size * pool], key=lambda problem: len(problem.solution))
        groups = [chunk[i : i + size] for i in range(0, len(chunk) - size + 1, size)]
        shuffle(groups)
        yield from groups


def _stack(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (length - len(row))] for row in rows])
