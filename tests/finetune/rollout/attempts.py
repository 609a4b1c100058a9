"""Attempts, prompts and samplers made up for tests."""

import zlib
from collections.abc import Sequence
from typing import Any

from seeklet.finetune.attempts import Attempt, Sampler
from seeklet.finetune.data.rows import Source
from seeklet.finetune.prompts.read import Prompt
from tests.finetune.characters import EOS, build_tokenizer

TOKENIZER = build_tokenizer()


def made(text: str = "<think>1+1</think>2", right: bool = True, **fields: Any) -> Attempt:
    """Return an attempt, right and finished unless told otherwise."""
    reward = float(right)
    return Attempt(
        **{
            "text": text,
            "num_tokens": len(text),
            "finished": True,
            "reward": reward,
            "rewards": {"exact": reward},
            "reasons": {},
            "is_right": right,
            **fields,
        }
    )


def sums(number: int) -> list[Prompt]:
    """Return problems 0+1, 1+2, … with their answers."""
    return [
        Prompt([{"role": "user", "content": f"{i}+{i + 1}"}], {"answer": str(2 * i + 1)}, Source("sums.jsonl", i + 1))
        for i in range(number)
    ]


def scripted(right_of_four: dict[str, int] | None = None, calls: list[int] | None = None) -> Sampler:
    """Return a sampler that depends on prompt and seed: `right_of_four` of the samples of a prompt are right (else 2).

    The seed is in the reasoning, so that every call with another one says something else.
    """

    def draw(prompts: Sequence[Sequence[int]], num_samples: int, seed: int) -> list[list[int]]:
        if calls is not None:
            calls.append(seed)
        rows = []
        for ids in prompts:
            expression = str(TOKENIZER.decode(list(ids), skip_special_tokens=True))
            expression = expression.removeprefix("<｜User｜>").removesuffix("<｜Assistant｜>")
            for sample in range(num_samples):
                answer = eval(expression) + (sample >= (right_of_four or {}).get(expression, 2))
                note = zlib.crc32(f"{seed} {expression} {sample}".encode())
                text = f"<think>{expression}={answer};{note}</think>{answer}{EOS}"
                rows.append(TOKENIZER(text, add_special_tokens=False)["input_ids"])
        return rows

    return draw
