"""Logits processors and stopping criteria, applied to several prefixes of every row at once."""

# B rows, S positions, V vocabulary

from collections.abc import Callable, Sequence
from copy import copy
from itertools import groupby

import torch
from transformers.generation import logits_process as processors
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

# These look at one row of scores only. Exact types: a subclass may look at the prefix.
PREFIX_FREE = frozenset(
    {
        processors.TemperatureLogitsWarper,
        processors.TopKLogitsWarper,
        processors.TopPLogitsWarper,
        processors.TopHLogitsWarper,
        processors.MinPLogitsWarper,
        processors.TypicalLogitsWarper,
        processors.EpsilonLogitsWarper,
        processors.EtaLogitsWarper,
        processors.InfNanRemoveLogitsProcessor,
        processors.LogitNormalization,
        processors.SuppressTokensLogitsProcessor,
    }
)


class PrefixProcessors:
    """Logits processors, called at several positions a row with the results of one call a token."""

    def __init__(self, logits_processor: Sequence[Callable[..., torch.Tensor]], tokens: torch.Tensor):
        """Read prefixes from the front of `tokens` (B, columns), whatever it holds at the time of a call."""
        self._tokens = tokens
        runs = groupby(logits_processor, key=lambda processor: type(processor) in PREFIX_FREE)
        self._runs = [(prefix_free, list(run)) for prefix_free, run in runs]

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def prefix_free(self) -> bool:
        """Whether no processor looks at the tokens before, or at the index of a row."""
        return all(prefix_free for prefix_free, _ in self._runs)

    def __call__(self, logits: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Return processed `logits` (B, S, V), those at position j of row r following `lengths[r] + j` tokens."""
        scores = logits
        for prefix_free, run in self._runs:
            if prefix_free:
                flat = scores.flatten(0, 1)
                for processor in run:
                    flat = processor(self._tokens, flat)
                scores = flat.view_as(scores)
            else:
                scores = self._read_prefixes(run, scores, lengths)
        return scores

    def _read_prefixes(
        self, run: list[Callable[..., torch.Tensor]], scores: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """Return `scores` after processors that see the tokens before: one call for each length of a prefix.

        A call gets all rows, because some processors tell rows apart by their index; what it returns for a row that
        has no position at this length is dropped.
        """
        rows = torch.arange(len(lengths), device=scores.device)
        result = torch.empty_like(scores)
        for length in sorted({length + j for length in lengths for j in range(scores.shape[1])}):
            positions = [length - first for first in lengths]
            inside = [row for row, j in enumerate(positions) if 0 <= j < scores.shape[1]]
            columns = torch.tensor([min(max(j, 0), scores.shape[1] - 1) for j in positions], device=scores.device)
            processed = scores[rows, columns]
            for processor in run:
                processed = processor(self._tokens[:, :length], processed)
            chosen = torch.tensor(inside, device=scores.device)
            result[chosen, columns[chosen]] = processed[chosen].to(result.dtype)
        return result


class RowEnds:
    """How many tokens each row has and where it ends, as plain `generate` would end it token by token.

    `lengths` counts a row's tokens, the prompt's included; `ends` is the length at which it stopped, or None. Where no
    criterion knows an end-of-sequence token, `generate` pads nothing: a row that has ended goes on, to the length of
    the longest.
    """

    def __init__(self, criteria: StoppingCriteriaList, num_rows: int, prompt_length: int, max_length: int):
        limits = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        self.max_length = min(limits, default=max_length)
        self.pads = any(hasattr(c, "eos_token_id") for c in criteria)
        self.lengths = [prompt_length] * num_rows
        self._prompt_length = prompt_length
        self.ends: list[int | None] = [None] * num_rows
        ids = [c.eos_token_id.tolist() for c in criteria if type(c) is EosTokenCriteria]
        self._eos = frozenset(token for tokens in ids for token in tokens)
        known = (MaxLengthCriteria, EosTokenCriteria)
        others = StoppingCriteriaList([c for c in criteria if type(c) not in known])
        self._others: Callable[..., torch.Tensor] | None = others if others else None

    @property
    def done(self) -> bool:
        """Whether no row needs another token."""
        ends = [end for end in self.ends if end is not None]
        return len(ends) == len(self.ends) and (self.pads or min(self.lengths) >= max(ends))

    @property
    def total(self) -> int:
        """The length of the longest row, where every row has ended."""
        return max(end for end in self.ends if end is not None)

    @property
    def rows_may_leave(self) -> bool:
        """Whether a row that has ended is padded, and no criterion sees which rows there are."""
        return self.pads and self._others is None

    def select(self, rows: Sequence[int]) -> "RowEnds":
        """Return the same for some rows, to be counted on apart from this."""
        chosen = copy(self)
        chosen.lengths, chosen.ends = [self.lengths[row] for row in rows], [self.ends[row] for row in rows]
        return chosen

    def update(self, rows: Sequence[int], chosen: "RowEnds") -> None:
        """Take over what `chosen`, made by `select(rows)`, has counted since."""
        for row, length, end in zip(rows, chosen.lengths, chosen.ends, strict=True):
            self.lengths[row], self.ends[row] = length, end

    def is_frozen(self, row: int) -> bool:
        """Return whether the row takes no further tokens."""
        return self.lengths[row] >= self.max_length or (self.pads and self.ends[row] is not None)

    def prefix_lengths(self, ahead: int) -> list[int]:
        """Return the tokens in front of what comes `ahead` tokens behind each row.

        Rows that take nothing any more get the length of the longest, so that they cost no calls of their own.
        """
        longest = max(self.lengths)
        rows = range(len(self.lengths))
        return [(longest if self.is_frozen(row) else self.lengths[row]) + ahead for row in rows]

    def advance(self, tokens: list[list[int]], num_kept: list[int]) -> list[int]:
        """Return how many tokens each row takes of the `num_kept[row] + 1` it is offered, after counting them.

        A row stops behind an end-of-sequence token and at the maximum length.
        """
        taken = []
        for row, kept in enumerate(num_kept):
            length = self.lengths[row]
            count = 0 if self.is_frozen(row) else min(kept + 1, self.max_length - length)
            if self.ends[row] is None:
                for i in range(count):
                    if tokens[row][i] in self._eos:
                        count = i + 1
                        self.ends[row] = length + count
                        break
                else:
                    if length + count >= self.max_length:
                        self.ends[row] = self.max_length
            self.lengths[row] = length + count
            taken.append(count)
        return taken

    def _open_until(self, row: int) -> int:
        """Return the greatest length at which a criterion may still end the row."""
        end = self.ends[row]
        return self.lengths[row] if end is None else min(self.lengths[row], end - 1)

    def stop(self, tokens: torch.Tensor, taken: list[int], scores: list[torch.Tensor] | None) -> None:
        """Shorten rows, and `taken` with them, to the first length at which any other criterion holds.

        Args:
            tokens: (B, columns), the rows' tokens at the front.
            taken: how many tokens each row took last.
            scores: one (B, V) per generated token, where the user asked for them.
        """
        if self._others is None:
            return
        before = [length - count for length, count in zip(self.lengths, taken, strict=True)]
        for length in range(min(before) + 1, max(self.lengths) + 1):
            asked = [row for row in range(len(before)) if before[row] < length <= self._open_until(row)]
            if not asked:
                continue
            seen = None if scores is None else tuple(scores[: length - self._prompt_length])
            holds = self._others(tokens[:, :length], seen).tolist()
            for row in asked:
                if holds[row]:
                    self.ends[row] = length
                    if self.pads:
                        self.lengths[row] = length
                        taken[row] = length - before[row]


class TokenRecord:
    """One (B, V) per generated token, zero for rows that had ended, as `output_scores` and `output_logits` return."""

    def __init__(self, prompt_length: int):
        self.steps: list[torch.Tensor] = []
        self._prompt_length = prompt_length

    def add(self, values: torch.Tensor, lengths: list[int], taken: list[int]) -> None:
        """Record the first `taken[row]` of `values` (B, S, V), which follow `lengths[row]` tokens."""
        for row, count in enumerate(taken):
            for j in range(count):
                step = lengths[row] + j - self._prompt_length
                if step == len(self.steps):
                    self.steps.append(torch.zeros_like(values[:, 0]))
                self.steps[step][row] = values[row, j]

    def finish(self, lengths: list[int], total: int) -> tuple[torch.Tensor, ...]:
        """Return the record of a text of `total` tokens, without what lies behind the end of a row."""
        steps = self.steps[: total - self._prompt_length]
        for row, length in enumerate(lengths):
            for step in steps[length - self._prompt_length :]:
                step[row] = 0
        return tuple(steps)
