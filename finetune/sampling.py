"""Many samples of a few prompts from any causal model: each prompt is read once, and ended rows leave the batch."""

# N prompts, G samples of each, R = N*G rows in order of prompts, B rows still sampled

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import DynamicCache, GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seeklet.modeling import GenerationError, SeekletForCausalLM
from seeklet.modeling.cache import LatentCache
from seeklet.modeling.routing_record import RoutingRecord, record_routing

from .inner_model import find_inside

# Rows leave once so many of them have ended: taking rows out copies the cache of the others.
LEAVING_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: a completion is cut off after so many.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: only the most likely tokens that make up this probability are drawn from.
        top_k: only so many tokens are drawn from; 0 is all.
        min_p: only tokens with at least this share of the largest probability are drawn from; 0 is all.
        use_mtp: whether multi-token prediction modules draft; the distribution of the samples is the same.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    use_mtp: bool = False


@dataclass(frozen=True)
class Samples:
    """Samples in order of prompts: `tokens` of each row, its end-of-sequence token included, and where recorded its
    `routing`, by position in prompt and completion."""

    tokens: list[list[int]]
    routing: RoutingRecord | None = None


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    sampling: Sampling,
    eos: Collection[int],
    pad: int,
    *,
    records_routing: bool = False,
    synced: bool = False,
    on_tokens: Callable[[int], None] = lambda number: None,
) -> Samples:
    """Return `num_samples` completions of each of `prompts`, drawn with PyTorch's generator.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        num_samples: completions of each prompt.
        sampling: how tokens are drawn.
        eos: tokens that end a completion.
        pad: any token; nothing attends to it.
        records_routing: whether the experts that a seeklet model chooses are recorded.
        synced: whether processes gather parameters together, so that all go on until the last has ended.
        on_tokens: told after each step how many tokens it brought; with drafts, once at the end.

    Raises:
        GenerationError: the model's logits are not all numbers.
    """
    num_rows, longest = len(prompts) * num_samples, max(map(len, prompts))
    recording: AbstractContextManager[RoutingRecord | None] = nullcontext()
    if records_routing:
        recording = record_routing(model, num_rows, longest + sampling.max_new_tokens)
    with recording as record:
        if sampling.use_mtp:
            tokens = _with_drafts(model, prompts, num_samples, sampling, eos, pad)
            on_tokens(sum(map(len, tokens)))
            return Samples(tokens, record)
        rows = _Rows(model, prompts, num_samples, sampling, pad, record)
        tokens = rows.run(torch.tensor(sorted(eos), device=model.device), synced, on_tokens)
    if record is not None:
        rows.copy_prompts(record)
    return Samples(tokens, record)


class _Rows:
    """All rows from the first token to the last."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        sampling: Sampling,
        pad: int,
        record: RoutingRecord | None,
    ):
        self._model, self._num_samples, self._record = model, num_samples, record
        self._sampling, self._warpers = sampling, _warpers(sampling)
        self._lengths = [len(prompt) for prompt in prompts]
        tokens, mask = left_padded(prompts, pad, model.device)
        # Read once for all samples of a prompt.
        self._firsts = torch.arange(0, len(prompts) * num_samples, num_samples, device=model.device)
        if record is not None:
            record.rows = self._firsts
        self._cache: Any = None
        seeklet = find_inside(model, SeekletForCausalLM)
        if seeklet is not None:
            self._cache = LatentCache(seeklet.config.num_hidden_layers)
        else:
            self._cache = DynamicCache(config=model.config)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self._forward(tokens, mask, positions)
        self._cache.batch_repeat_interleave(num_samples)
        self._logits = logits.repeat_interleave(num_samples, dim=0)
        self._mask = mask.repeat_interleave(num_samples, dim=0)
        self._positions = positions[:, -1:].repeat_interleave(num_samples, dim=0)

    def run(self, eos: torch.Tensor, synced: bool, on_tokens: Callable[[int], None]) -> list[list[int]]:
        """Return the completions of all rows."""
        num_rows, device = len(self._logits), self._logits.device
        rows = torch.arange(num_rows, device=device)
        written = torch.zeros(num_rows, self._sampling.max_new_tokens, dtype=torch.long, device=device)
        lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        alive = torch.ones(num_rows, dtype=torch.bool, device=device)
        for step in range(self._sampling.max_new_tokens):
            token = self._draw()
            written[rows[alive], step] = token[alive]
            lengths[rows[alive]] += 1
            on_tokens(int(alive.sum()))
            alive &= ~torch.isin(token, eos)
            num_alive = int(alive.sum())
            if _all_ended(alive, synced) or step + 1 == self._sampling.max_new_tokens:
                break
            if num_alive <= (1 - LEAVING_SHARE) * len(alive):
                # Where other processes go on, one row does, for company.
                kept = alive.nonzero().squeeze(1) if num_alive else rows.new_zeros(1)
                rows, token, alive = rows[kept], token[kept], alive[kept]
                self._keep(kept)
            if self._record is not None:
                self._record.rows = rows
            self._positions = self._positions + 1
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(rows), 1)), dim=1)
            self._logits = self._forward(token[:, None], self._mask, self._positions)
        return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]

    def copy_prompts(self, record: RoutingRecord) -> None:
        """Give the samples of a prompt what was recorded of the one that read it."""
        for first, length in zip(self._firsts.tolist(), self._lengths, strict=True):
            record.choices[:, first : first + self._num_samples, :length] = record.choices[:, first, None, :length]

    def _keep(self, kept: torch.Tensor) -> None:
        self._cache.batch_select_indices(kept)
        self._mask, self._positions = self._mask[kept], self._positions[kept]

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, V), fp32, of what follows."""
        outputs = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1].float()

    def _draw(self) -> torch.Tensor:
        if not torch.isfinite(self._logits).all():
            raise GenerationError("the logits are not all numbers, so no token can be drawn: the model has diverged")
        if not self._sampling.temperature:
            return self._logits.argmax(-1)
        # The processors look at the scores only.
        scores = self._warpers(torch.empty(0, dtype=torch.long), self._logits)  # pyright: ignore[reportArgumentType]
        return torch.multinomial(scores.softmax(-1), 1).squeeze(1)


def _all_ended(alive: torch.Tensor, synced: bool) -> bool:
    num_alive = alive.sum()
    if synced:
        dist.all_reduce(num_alive)
    return not num_alive


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, int64 (B, S), of rows that all end in the last column."""
    length = max(map(len, rows))
    tokens = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers


def _with_drafts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    sampling: Sampling,
    eos: Collection[int],
    pad: int,
) -> list[list[int]]:
    tokens, mask = left_padded([prompt for prompt in prompts for _ in range(num_samples)], pad, model.device)
    greedy = not sampling.temperature
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else sampling.top_k,
        min_p=sampling.min_p or None,
        eos_token_id=sorted(eos),
        pad_token_id=pad,
        use_mtp=True,
    )
    with _own_settings_aside(model):
        texts = model.generate(tokens, attention_mask=mask, generation_config=config)[:, tokens.shape[1] :].tolist()
    ends = (next((i + 1 for i, token in enumerate(text) if token in eos), len(text)) for text in texts)
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """Keep `generate` from adding what the checkpoint's generation_config.json says: penalties, limits, beams."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
