"""Which of any number of keys came more than once, in bounded memory and time linear in their number."""

import tempfile
from array import array
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

# 16 bytes each: 16 MiB before anything goes to disk.
_HELD_KEYS = 1 << 20
# By the top byte of the key. At the end one part is sorted at a time: 5 GB of chat rows are 0.5 MB a part.
_NUM_PARTS = 256

Places = npt.NDArray[np.uint64]


class Repeats(NamedTuple):
    """Places whose key came before: `later[i]` has the key that `first[i]` had first. In no order."""

    first: Places
    later: Places


class RepeatFinder:
    """Collects keys with their places, and then tells which came more than once.

    Keys and places are unsigned 64-bit numbers; the smallest place of a key is its first. What does not fit in memory
    waits in a temporary file that has no name.
    """

    def __init__(self, held_keys: int = _HELD_KEYS):
        self._held_keys = held_keys
        self._held = array("Q")
        self._spilled: BinaryIO | None = None
        # Of every spill: where in the file each part starts, and where the last one ends, in pairs.
        self._bounds: list[npt.NDArray[np.int64]] = []

    def add(self, key: int, place: int) -> None:
        """Take note that `place` has `key`."""
        self._held.append(key)
        self._held.append(place)
        if len(self._held) >= 2 * self._held_keys:
            self._spill()

    def repeats(self) -> Iterator[Repeats]:
        """Yield the repeated places, a part at a time; ends the collecting."""
        if self._spilled is None:
            if len(self._held):
                yield _repeats(_pairs(self._held))
            return
        self._spill()
        with self._spilled as file:
            for part in range(_NUM_PARTS):
                pieces = [_read(file, bounds[part], bounds[part + 1]) for bounds in self._bounds]
                yield _repeats(np.concatenate(pieces))

    def _spill(self) -> None:
        """Move what is held to the file, part by part."""
        if self._spilled is None:
            self._spilled = tempfile.TemporaryFile(prefix="seeklet-keys-")  # noqa: SIM115 closed by repeats()
        pairs = _pairs(self._held)
        parts = pairs[:, 0] >> np.uint64(56)
        sizes = np.bincount(parts.astype(np.int64), minlength=_NUM_PARTS)
        start = self._bounds[-1][-1] if self._bounds else 0
        self._bounds.append(start + np.concatenate([[0], np.cumsum(sizes)]))
        self._spilled.seek(0, 2)
        self._spilled.write(pairs[np.argsort(parts, kind="stable")].tobytes())
        self._held = array("Q")


def _pairs(held: "array[int]") -> npt.NDArray[np.uint64]:
    return np.frombuffer(held, dtype=np.uint64).reshape(-1, 2)


def _read(file: BinaryIO, start: int, end: int) -> npt.NDArray[np.uint64]:
    file.seek(16 * int(start))
    return np.frombuffer(file.read(16 * int(end - start)), dtype=np.uint64).reshape(-1, 2)


def _repeats(pairs: npt.NDArray[np.uint64]) -> Repeats:
    keys, places = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].T
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    # Of each place, where the run of its key starts.
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    return Repeats(places[start][~is_first], places[~is_first])
