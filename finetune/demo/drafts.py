"""Rollouts with MTP drafts beside rollouts without: tokens per second, by the number of rows sampled at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from seeklet.modeling import SeekletForCausalLM

from ..attempts import Sampler, make_sampler
from ..evaluation.progress import row_progress
from ..sampling import Sampling


@dataclass(frozen=True)
class DraftSpeed:
    """What drafting changes at one batch size: medians over repeats, of either kind in turns."""

    rows: int
    """Sampled at a time."""
    prompts: int
    repeats: int
    plain_tokens_per_s: float
    drafts_tokens_per_s: float
    speedup: float
    """Tokens per second of a run with drafts over those of the plain one right before it."""
    lowest: float
    """The smallest such ratio."""
    highest: float


def measure_drafts(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    row_counts: Sequence[int],
    repeats: int,
    console: Console,
) -> list[DraftSpeed]:
    """Return the speeds of sampling one completion of each of some prompts, for each number of rows at a time."""
    speeds = []
    # At least as many prompts as give a run some length.
    least = min(8, len(prompts))
    with row_progress(console, "rollouts with and without drafts", len(row_counts) * (repeats + 1)) as advance:
        for rows in row_counts:
            chosen = prompts[: max(rows, least)]
            plain, drafted = (
                make_sampler(model, tokenizer, replace(sampling, use_mtp=use_mtp), rows) for use_mtp in (False, True)
            )
            # The first runs of either kind pay for lazy set-up.
            pairs = []
            for seed in range(repeats + 1):
                pairs.append((_tokens_per_s(plain, chosen, seed), _tokens_per_s(drafted, chosen, seed)))
                advance(1)
            without, with_ = zip(*pairs[1:], strict=True)
            ratios = [b / a for a, b in pairs[1:]]
            speeds.append(
                DraftSpeed(
                    rows=rows,
                    prompts=len(chosen),
                    repeats=repeats,
                    plain_tokens_per_s=median(without),
                    drafts_tokens_per_s=median(with_),
                    speedup=median(ratios),
                    lowest=min(ratios),
                    highest=max(ratios),
                )
            )
    return speeds


def _tokens_per_s(sampler: Sampler, prompts: Sequence[Sequence[int]], seed: int) -> float:
    start = perf_counter()
    tokens = sum(map(len, sampler(prompts, 1, seed)))
    return tokens / (perf_counter() - start)
