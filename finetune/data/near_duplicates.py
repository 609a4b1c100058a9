"""Near-duplicates by MinHash and locality-sensitive hashing, in time linear in the text.

One-permutation MinHash (Li, Owen and Zhang 2012), its empty bins filled by rotation (Shrivastava and Li 2014): each
piece of eight bytes is hashed once, whatever the number of bins. Rows that agree in all bins of a band are candidates;
the share of bins in which two rows agree estimates the share of pieces they have in common (Jaccard similarity).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .duplicates import Repeats
from .fingerprint import plain_bytes
from .rows import Message

# The standard error of the estimate is 0.035 at this similarity.
SIMILARITY = 0.8
_NUM_BINS = 128
# 16 bands of 8 bins find 95 % of the pairs at a similarity of 0.8, 99.99 % at 0.9, and 6 % at 0.5 (then refused).
_BAND = 8
_PIECE = 8
# Below this, rows such as "yes" and "no" share most of what little they have.
_MIN_BYTES = 4 * _PIECE
# Bounds the memory of hashing, some 60 bytes for each byte of text.
_BATCH_BYTES = 1 << 20
# Pairs compared at a time: 8 MiB of signatures.
_BATCH_PAIRS = 1 << 15

# Odd constants of splitmix64, which spreads eight bytes of text over 64 bits.
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
# The top seven bits of a hash choose one of 128 bins, the others are compared.
_BIN_SHIFT = np.uint64(57)
_EMPTY = np.uint64(1) << _BIN_SHIFT

Words = npt.NDArray[np.uint64]


class NearDuplicateFinder:
    """Collects rows, and then tells which are like an earlier one; holds about 400 bytes of memory a row."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._num_bytes = 0
        self._places: list[int] = []
        self._keys: list[int] = []
        self._signatures: list[npt.NDArray[np.uint8]] = []
        self._bands: list[Words] = []

    def add(self, messages: Sequence[Message], place: int, key: int) -> None:
        """Take note of what the turns at `place` say; system turns, which rows share, are left out.

        Places are given in order. `key` is the row's fingerprint: of rows that share theirs, only the first counts.
        """
        text = plain_bytes([message["content"] for message in messages if message["role"] != "system"])
        if len(text) < _MIN_BYTES:
            return
        self._texts.append(text)
        self._places.append(place)
        self._keys.append(key)
        self._num_bytes += len(text)
        if self._num_bytes > _BATCH_BYTES:
            self._hash()

    def repeats(self) -> Repeats:
        """Return the places that are like an earlier one, each once, with the first found that it is like."""
        self._hash()
        if not self._places:
            return Repeats(np.empty(0, np.uint64), np.empty(0, np.uint64))
        _, distinct = np.unique(np.array(self._keys, dtype=np.uint64), return_index=True)
        distinct.sort()
        signatures = np.concatenate(self._signatures)
        # Let go, for there may be gigabytes; so is each band.
        self._signatures = []
        if len(distinct) < len(signatures):
            signatures = signatures[distinct]
        like = np.full(len(distinct), -1)
        for number in range(_NUM_BINS // _BAND):
            band = np.concatenate([bands[:, number] for bands in self._bands])[distinct]
            _compare(band, signatures, like)
        places = np.array(self._places, dtype=np.uint64)[distinct]
        later = like >= 0
        return Repeats(places[like[later]], places[later])

    def _hash(self) -> None:
        if self._texts:
            minima = minhash(self._texts)
            self._signatures.append(minima.astype(np.uint8))
            self._bands.append(_band_keys(minima))
        self._texts = []
        self._num_bytes = 0


def minhash(texts: Sequence[bytes]) -> Words:
    """Return the MinHash of each of `texts`, of 8 bytes or more: shape (texts, 128).

    The share of equal numbers in two rows estimates the Jaccard similarity of the texts' sets of 8-byte pieces.
    """
    joined = b"".join(texts)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    num_pieces = len(joined) - _PIECE + 1
    # Every eight neighbouring bytes as one number.
    pieces = np.ndarray((num_pieces,), dtype="<u8", buffer=joined, strides=(1,))
    whole = owner[:num_pieces] == owner[_PIECE - 1 :]
    hashes = pieces[whole] * _ODD
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    bins = owner[:num_pieces][whole] * _NUM_BINS + (hashes >> _BIN_SHIFT).astype(np.int64)
    minima = np.full(len(texts) * _NUM_BINS, _EMPTY)
    np.minimum.at(minima, bins, hashes & (_EMPTY - np.uint64(1)))
    return _filled(minima.reshape(-1, _NUM_BINS))


def _filled(minima: Words) -> Words:
    """Fill each empty bin with the next one that is not, going round."""
    position = np.where(np.tile(minima, 2) == _EMPTY, 2 * _NUM_BINS, np.arange(2 * _NUM_BINS))
    following = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1][:, :_NUM_BINS]
    return np.take_along_axis(minima, following % _NUM_BINS, axis=1)


def _band_keys(minima: Words) -> Words:
    """Return one number for each band of bins: shape (rows, 16)."""
    banded = minima.reshape(len(minima), -1, _BAND)
    keys = np.zeros(banded.shape[:2], dtype=np.uint64)
    for index in range(_BAND):
        keys = (keys ^ banded[:, :, index]) * _ODD
    return keys


def _compare(band: Words, signatures: npt.NDArray[np.uint8], like: npt.NDArray[np.int64]) -> None:
    """Fill in `like` for rows that agree in `band` with an earlier row and are indeed like it.

    Each is compared with the first and the previous of those it agrees with, which keeps many copies of one text from
    taking quadratic time.
    """
    order = np.argsort(band, kind="stable")
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = band[order][1:] != band[order][:-1]
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    rank = np.flatnonzero(~is_first)
    for earlier in (order[start[rank]], order[rank - 1]):
        later = order[rank]
        unknown = like[later] < 0
        earlier, later = earlier[unknown], later[unknown]
        for at in range(0, len(later), _BATCH_PAIRS):
            one, other = earlier[at : at + _BATCH_PAIRS], later[at : at + _BATCH_PAIRS]
            equal = np.mean(signatures[one] == signatures[other], axis=1)
            # One byte in 256 agrees by chance.
            alike = (equal - 1 / 256) / (1 - 1 / 256) >= SIMILARITY
            like[other[alike]] = one[alike]
