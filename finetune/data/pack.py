"""Several conversations to a row of tokens, so that hardly any of a batch is padding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from trl.data_utils import pack_dataset

from ..errors import DataError

# Arrow counts the values of one list column in 31 bits, and TRL takes the first chunk of a column for all of it.
_MOST_TOKENS = 2**30


class Packed(NamedTuple):
    """Rows of at most a given number of tokens, and how full they are.

    The data set has the columns it had, and `seq_lengths`, the lengths of the conversations in each row. That is what
    TRL's collator needs for `position_ids` that start at 0 again with each of them, which in turn keep attention,
    convolutions and multi-token prediction inside one conversation. TRL takes it with `packing=False`,
    `padding_free=True`, `max_length=None`.
    """

    dataset: Dataset
    efficiency: float
    """Share of real tokens in rows of the full length, from 0 to 1."""


def pack(dataset: Dataset, row_tokens: int) -> Packed:
    """Return the rows of `dataset` joined to rows of at most `row_tokens` tokens; none is cut.

    Best-fit decreasing, as TRL has it, but over the whole data set at a time, not over each thousand rows: the last
    row of each thousand would stay half empty. The same data gives the same rows.

    Raises:
        DataError: a row is longer than `row_tokens`; TRL would cut it off without a word.
    """
    if len(dataset) == 0:
        return Packed(dataset.add_column("seq_lengths", []), 1.0)
    lengths = np.array([len(ids) for ids in dataset.with_format("arrow")["input_ids"]])
    if (longest := int(lengths.max())) > row_tokens:
        raise DataError(f"a row has {longest:,} tokens; allowed when packing: at most {row_tokens:,}")
    num_rows = max(1, int(_MOST_TOKENS / lengths.mean()))
    with _without_bars():
        packed = pack_dataset(dataset, row_tokens, "bfd", {"batch_size": num_rows})
    return Packed(packed, float(lengths.sum()) / (len(packed) * row_tokens))


@contextmanager
def _without_bars() -> Iterator[None]:
    # A million rows take some ten seconds, and the library's bar also goes to log files.
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
