"""Conversations as token ids with a mask of what is trained on, in as many processes as pay off."""

import os
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..reasoning import END_THINK, THINK
from .left_out import left_out
from .problems import Flaw, Problem
from .rows import Row
from .scan import texts_of
from .template import ChatTemplate, Rendered, render
from .text_flaws import special_token_flaws, special_token_pattern
from .wording import quoted

# Long enough that handing a batch to another process costs nothing against tokenising it, some 0.1 s.
_BATCH = 256
# Starting a process takes some 6 s, as long as tokenising about so many rows.
_ROWS_WORTH_A_PROCESS = 20_000
# DeepSeek's tokenizer does not call its marks of a turn special. <think> and the like, which an answer may spell out,
# are no such marks.
_TURN_MARK = re.compile(r"<[|｜].*[|｜]>")


class Encoded(NamedTuple):
    """Token ids, beside each whether it is trained on (0 or 1), and whether an answer is joined to what precedes it.

    It is joined where blank space at its start makes up one token with the end of the header before it. When the model
    answers, the header ends in a token of its own, which training has never shown it.
    """

    input_ids: npt.NDArray[np.int32]
    assistant_mask: npt.NDArray[np.uint8]
    joined: bool = False


class TokenRow(NamedTuple):
    """A row as token ids, and beside each whether it is trained on."""

    row: Row
    input_ids: npt.NDArray[np.int32]
    assistant_mask: npt.NDArray[np.uint8]
    # Whether tokens were cut off at the end, and whether an answer is joined to its header (see Encoded).
    truncated: bool = False
    joined: bool = False


class RefusedRow(NamedTuple):
    """A row that cannot be trained on, and why: one problem or several."""

    row: Row
    problems: list[Problem]


@dataclass(frozen=True)
class RowTokenizer:
    """Makes token rows out of rows.

    `max_tokens` bounds their length. A longer row is refused, or cut off after `max_tokens` if `truncate` is set; then
    it is refused if nothing is left in it to train on.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    max_tokens: int
    truncate: bool = False
    assistant_only: bool = True

    def __call__(self, rows: Sequence[Row]) -> list[TokenRow | RefusedRow]:
        """Return for each row its tokens, or why it is refused."""
        rendered = [self._render(row) for row in rows]
        texts = [made for made in rendered if isinstance(made, Rendered)]
        encoded = iter(encode(self.tokenizer, texts))
        return [
            self._token_row(row, next(encoded)) if isinstance(made, Rendered) else _refused(row, made)
            for row, made in zip(rows, rendered, strict=True)
        ]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """What matches the tokens that mean something else than their text."""
        added = self.tokenizer.added_tokens_decoder.values()
        marks = {token.content for token in added if token.special or _TURN_MARK.fullmatch(token.content)}
        return special_token_pattern(sorted(marks - {THINK, END_THINK}))

    def _render(self, row: Row) -> Rendered | list[Flaw]:
        flaws = [flaw for field, text in texts_of(row) for flaw in special_token_flaws(text, field, self._special)]
        flaws += _tag_flaws(row)
        try:
            rendered = render(self.tokenizer, self.template, row.messages, row.tools)
        except TemplateError as error:
            message = f"is refused by the chat template {self.template.name}: {error}"
            return [*flaws, Flaw("", message, "template-refuses")]
        if (field := left_out(self.tokenizer, self.template, row, rendered)) is not None:
            message = (
                f"is left out by the chat template {self.template.name}; allowed: what it writes. Take another with "
                "data.chat_template, or remove the field or move its text into a content"
            )
            flaws.append(Flaw(field, message, "template-leaves-out"))
        if flaws:
            return flaws
        return rendered if self.assistant_only else Rendered(rendered.text, [(0, len(rendered.text))])

    def _token_row(self, row: Row, encoded: Encoded) -> TokenRow | RefusedRow:
        input_ids, mask, joined = encoded
        num_tokens = len(input_ids)
        if not mask.any():
            message = f"has nothing to train on in what the chat template {self.template.name} marks"
            return _refused(row, [Flaw("", message, "nothing-to-train")])
        if num_tokens <= self.max_tokens:
            return TokenRow(row, input_ids, mask, joined=joined)
        message = f"has {num_tokens:,} tokens; allowed: at most data.max_tokens, {self.max_tokens:,}"
        if self.truncate:
            input_ids, mask = input_ids[: self.max_tokens], mask[: self.max_tokens]
            if mask.any():
                return TokenRow(row, input_ids, mask, True, joined)
            message += ", and before the cut nothing to train on"
        return _refused(row, [Flaw("", message, "too-long")])


def _tag_flaws(row: Row) -> list[Flaw]:
    """Return where tags of reasoning stand in a turn whose reasoning is a field: templates write the tags of that."""
    allowed = "allowed: reasoning and answer without tags, or both in one content with them"
    return [
        Flaw(f"messages[{i}].{name}", f"holds {quoted(tag)}; {allowed}", "reasoning-tags")
        for i, message in enumerate(row.messages)
        if "reasoning_content" in message
        for name in ("reasoning_content", "content")
        for tag in (THINK, END_THINK)
        if tag in message[name]
    ]


def _refused(row: Row, flaws: list[Flaw]) -> RefusedRow:
    return RefusedRow(row, [flaw.at(row.source) for flaw in flaws])


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered]) -> list[Encoded]:
    """Return the token ids of each text and which of them hold a character that the model generates.

    A tokenizer that cannot say where its tokens stand in the text is given the stretches one by one instead, as it is
    when the model answers: what precedes an answer is tokenised without it.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        return [_encode_in_parts(tokenizer, rendered) for rendered in texts]
    batch = tokenizer([rendered.text for rendered in texts], add_special_tokens=False, verbose=False)
    encoded = []
    for i, (_, generated) in enumerate(texts):
        encoding = batch[i]
        mask, joined = np.zeros(len(encoding.ids), dtype=np.uint8), False
        # Starts and ends of tokens never fall, also where several tokens make up one character.
        offsets = encoding.offsets
        for start, end in generated:
            first = bisect_right(offsets, start, key=lambda offset: offset[1])
            last = bisect_left(offsets, end, key=lambda offset: offset[0])
            mask[first:last] = 1
            joined = joined or (first < last and offsets[first][0] < start)
        encoded.append(Encoded(np.array(encoding.ids, dtype=np.int32), mask, joined))
    return encoded


def _encode_in_parts(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> Encoded:
    cuts = [0, *(cut for stretch in rendered.generated for cut in stretch), len(rendered.text)]
    parts = [tokenizer.encode(rendered.text[start:end], add_special_tokens=False) for start, end in pairwise(cuts)]
    # Every other part is generated.
    mask = [np.full(len(part), i % 2, dtype=np.uint8) for i, part in enumerate(parts)]
    return Encoded(np.array([token for part in parts for token in part], dtype=np.int32), np.concatenate(mask))


def tokenize_rows(
    rows: Iterable[Row], tokenize: RowTokenizer, num_processes: int | None = None
) -> Iterator[TokenRow | RefusedRow]:
    """Yield what `tokenize` makes of each row, in order, holding few rows at a time.

    By default other processes help where more than two cores are free and there are enough rows for them to pay off.
    """
    rows = iter(rows)
    if num_processes is None:
        yield from _in_batches(islice(rows, _ROWS_WORTH_A_PROCESS), tokenize)
        # Rendering is Python and needs processes; tokenising itself has threads in any case.
        num_processes = len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_processes < 2:
        yield from _in_batches(rows, tokenize)
    else:
        yield from _in_processes(rows, tokenize, min(num_processes, 16))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _in_batches(rows: Iterable[Row], tokenize: RowTokenizer) -> Iterator[TokenRow | RefusedRow]:
    for batch in _batches(rows):
        yield from tokenize(batch)


def _in_processes(rows: Iterable[Row], tokenize: RowTokenizer, num_processes: int) -> Iterator[TokenRow | RefusedRow]:
    batches = _batches(rows)
    if (first := next(batches, None)) is None:
        return
    # Started afresh: a process forked off threads, of torch or of a tokenizer, may hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start_worker, (tokenize,)) as pool:
        pending: deque[Future[list[TokenRow | RefusedRow]]] = deque([pool.submit(_work, first)])
        for batch in batches:
            pending.append(pool.submit(_work, batch))
            if len(pending) > 3 * num_processes:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


_tokenize: RowTokenizer


def _start_worker(tokenize: RowTokenizer) -> None:
    global _tokenize
    _tokenize = tokenize
    # The processes are as many as the cores already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(batch: list[Row]) -> list[TokenRow | RefusedRow]:
    return _tokenize(batch)
