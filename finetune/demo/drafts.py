"""Generation with and without MTP drafts on the same prompts: the same tokens, fewer steps, less time."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from seeklet.modeling import SeekletForCausalLM

from .batches import encode_prompts
from .evaluate import generate_greedily
from .task import Problem


@dataclass(frozen=True)
class DraftComparison:
    """What drafting changes. Times are medians over `repeats` runs of each kind, taken in turns."""

    prompts: int
    repeats: int
    new_tokens: int
    """Tokens that either way of generating produced, over all prompts."""
    main_model_steps: int
    """Passes through the main model that drafting needed for them, those over the prompts included."""
    drafts: int
    accepted_drafts: int
    identical_tokens: bool
    plain_s: float
    drafts_s: float
    speedup_lowest: float
    """The smallest ratio of one plain run to the run with drafts right after it."""
    speedup_highest: float

    @property
    def tokens_per_step(self) -> float:
        """Tokens per pass through the main model; plain generation makes 1."""
        return self.new_tokens / self.main_model_steps

    @property
    def acceptance(self) -> float:
        """The share of drafts that were right, in [0, 1]; 0 where none was made."""
        return self.accepted_drafts / max(1, self.drafts)

    @property
    def speedup(self) -> float:
        """Wall time of plain generation over that with drafts."""
        return self.plain_s / self.drafts_s


@torch.inference_mode()
def compare_drafts(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    repeats: int,
    on_repeat: Callable[[], None],
) -> DraftComparison:
    """Return tokens, steps and times of greedy generation, one prompt at a time, on one thread.

    One prompt at a time is where a decode step costs the same for one token as for two, and drafts pay most.
    """
    model.eval()
    prompts = [encode_prompts(tokenizer, [problem]) for problem in problems]
    # The first runs of either kind pay for lazy set-up, and are also where tokens and steps are counted.
    plain = [_generate(model, prompt, use_mtp=False) for prompt in prompts]
    drafted = [_generate(model, prompt, use_mtp=True) for prompt in prompts]
    plain_s, drafts_s = [], []
    with _one_thread():
        for _ in range(repeats):
            for seconds, use_mtp in ((plain_s, False), (drafts_s, True)):
                start = perf_counter()
                for prompt in prompts:
                    _generate(model, prompt, use_mtp)
                seconds.append(perf_counter() - start)
            on_repeat()
    ratios = [without / with_ for without, with_ in zip(plain_s, drafts_s, strict=True)]
    return DraftComparison(
        prompts=len(prompts),
        repeats=repeats,
        new_tokens=sum(
            output.sequences.shape[1] - prompt["input_ids"].shape[1]
            for output, prompt in zip(drafted, prompts, strict=True)
        ),
        # Each prompt's own pass gives a token too, and is not among the steps that generation counts.
        main_model_steps=sum(output.num_main_steps for output in drafted) + len(prompts),
        drafts=sum(output.num_drafts for output in drafted),
        accepted_drafts=sum(output.num_accepted_drafts for output in drafted),
        identical_tokens=all(torch.equal(a.sequences, b.sequences) for a, b in zip(plain, drafted, strict=True)),
        plain_s=median(plain_s),
        drafts_s=median(drafts_s),
        speedup_lowest=min(ratios),
        speedup_highest=max(ratios),
    )


def _generate(model: SeekletForCausalLM, prompt: BatchEncoding, use_mtp: bool) -> Any:
    return generate_greedily(model, prompt, use_mtp=use_mtp, return_dict_in_generate=True)


@contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
