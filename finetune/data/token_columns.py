"""Token rows gathered into a data set in memory."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from .tokenize_rows import TokenRow

# Bounds what is held twice while rows are gathered: about 20 MB at 500 tokens a row.
_CHUNK_ROWS = 4096


class TokenColumns:
    """Gathers token rows into the columns of a data set, some 5 bytes a token."""

    def __init__(self) -> None:
        self._rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]] = []
        self._chunks: list[pa.Table] = []

    def add(self, row: TokenRow) -> None:
        """Take the tokens of a row; its conversation is not kept."""
        self._rows.append((row.input_ids, row.assistant_mask))
        if len(self._rows) == _CHUNK_ROWS:
            self._fold()

    def dataset(self) -> Dataset:
        """Return all that was added, held in memory: nothing is cached on disk."""
        self._fold()
        return Dataset(pa.concat_tables(self._chunks))

    def _fold(self) -> None:
        offsets = np.cumsum([0, *(len(ids) for ids, _ in self._rows)], dtype=np.int32)
        ids = np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in self._rows)])
        masks = np.concatenate([np.empty(0, np.uint8), *(mask for _, mask in self._rows)])
        columns = {"input_ids": ids, "assistant_masks": masks}
        lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
        self._chunks.append(pa.table(lists))
        self._rows = []
