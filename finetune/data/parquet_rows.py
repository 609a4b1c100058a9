"""Rows of a Parquet file."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .files import DataFile
from .lines import Advance
from .problems import Problem, file_problem
from .records import Header, Record
from .rows import Source
from .wording import quoted

# Converted to Python objects at a time; a batch of chat rows is about 1 MB, one of long documents is kept to 16 MiB.
_BATCH_ROWS = 1024
_BATCH_BYTES = 16 << 20


def parquet_rows(
    file: DataFile, advance: Advance, needed: Callable[[tuple[str, ...]], list[str]]
) -> Iterator[Header | Record | Problem]:
    """Yield the header, then a record for every row, with the columns that `needed` chose from it.

    Lines are row numbers from 1. A file cut short or damaged gives a problem where reading stops.
    """
    row = 0
    told = 0
    try:
        table = pq.ParquetFile(file.stream)
        columns = tuple(table.schema_arrow.names)
        if twice := [name for name, count in Counter(columns).items() if count > 1]:
            message = f"has two columns named {quoted(twice[0])}; allowed: each once"
            yield file_problem(Source(file.name), message, "bad-header")
            return
        yield Header(columns, Source(file.name))
        num_rows = table.metadata.num_rows
        for batch in table.iter_batches(_batch_rows(table.metadata), columns=needed(columns), use_threads=False):
            values: list[dict[str, Any]] = batch.to_pylist()
            for value in values:
                row += 1
                yield Record(value, Source(file.name, row))
            read = file.num_bytes * row // num_rows
            advance(read - told)
            told = read
    # Arrow's own errors are ValueError, OSError, NotImplementedError (an unknown codec) or KeyError besides.
    # A date out of Python's range is an OverflowError.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        where = f"after row {row:,}" if row else "from the start"
        message = f"is not readable Parquet {where}: {reason[:200]}; was it copied or downloaded in full?"
        yield file_problem(Source(file.name), message, "bad-parquet")


def _batch_rows(metadata: pq.FileMetaData) -> int:
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(num_bytes, 1)))
