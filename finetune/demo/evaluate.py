"""Exact-match accuracy by the task's own verifier, with its confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from seeklet.modeling import SeekletForCausalLM

from .batches import encode_prompts
from .task import ChainSums, Problem

# The longest solution, six steps like -36-9=-45 with tags and end token, has 69 tokens.
MAX_NEW_TOKENS = 72
# The two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """How many of `total` problems were solved."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The share solved, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.correct, self.total)


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of a binomial share, (low, high) in [0, 1].

    Unlike the textbook `p ± z·sqrt(p(1-p)/n)` it has a width at 0 and at 100 % (Wilson 1927).
    """
    share = correct / total
    centre = share + z * z / (2 * total)
    margin = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the bound is 0 or 1 exactly; rounding would miss it by 1e-17.
    low = 0.0 if correct == 0 else (centre - margin) / scale
    high = 1.0 if correct == total else (centre + margin) / scale
    return low, high


@torch.inference_mode()
def complete(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    batch_size: int = 128,
) -> list[str]:
    """Return the model's greedy answer to each problem, tags included; puts the model into evaluation mode."""
    model.eval()
    completions = []
    for start in range(0, len(problems), batch_size):
        prompts = encode_prompts(tokenizer, problems[start : start + batch_size])
        tokens = generate_greedily(model, prompts)
        generated = tokens[:, prompts["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(generated, skip_special_tokens=True)
    return completions


def generate_greedily(model: SeekletForCausalLM, prompts: BatchEncoding, **options: Any) -> Any:
    """Return what `model.generate` returns for the prompts: token ids (B, S), or an object as `options` ask for."""
    # The protocol that transformers declares for `self` names attributes that only some of its models have.
    generate = model.generate  # pyright: ignore[reportAttributeAccessIssue]
    return generate(**prompts, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **options)


def score(task: ChainSums, problems: Sequence[Problem], completions: Sequence[str]) -> Accuracy:
    """Return how many of the completions the verifier accepts."""
    verdicts = [task.is_correct(text, problem) for text, problem in zip(completions, problems, strict=True)]
    return Accuracy(correct=sum(verdicts), total=len(verdicts))
