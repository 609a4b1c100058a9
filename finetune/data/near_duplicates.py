"""Near-duplicates by MinHash and locality-sensitive hashing, in time linear in the text.

One-permutation MinHash (Li, Owen and Zhang 2012), its empty bins filled by rotation (Shrivastava and Li 2014): each
piece of eight bytes is hashed once, whatever the number of bins. Rows that agree in all bins of a band are candidates;
the share of bins in which two rows agree estimates the share of pieces they have in common (Jaccard similarity).
"""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .duplicates import Repeats

# The standard error of the estimate is 0.035 at this similarity.
SIMILARITY = 0.8
_NUM_BINS = 128
# 16 bands of 8 bins find 95 % of the pairs at a similarity of 0.8, 99.99 % at 0.9, and 6 % at 0.5 (then refused).
_BAND = 8
_PIECE = 8
# Below this, rows such as "yes" and "no" share most of what little they have.
_MIN_BYTES = 4 * _PIECE
# Hashing takes some 30 bytes for each byte of text: so much stays in the processor's cache.
_BATCH_BYTES = 1 << 17
# Pairs compared at a time: 512 KiB of signatures, which stay in the processor's cache.
_BATCH_PAIRS = 1 << 11

# The odd constant of Fibonacci hashing: the upper bits of a product with it depend on all eight bytes of a piece.
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HASH_SHIFT = np.uint64(32)
# The top seven bits of a hash choose one of 128 bins, the others are compared.
_BIN_SHIFT = np.uint32(25)
_EMPTY = np.uint32(1 << 25)
# Stands for a bin after which no other is filled.
_NONE = np.uint8(255)

Signatures = npt.NDArray[np.uint8]


class NearDuplicateFinder:
    """Collects rows, and then tells which are like an earlier one; holds about 300 bytes of memory a row."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._num_bytes = 0
        self._places = array("Q")
        self._keys = array("Q")
        self._signatures: list[Signatures] = []

    def add(self, text: bytes, place: int, key: int) -> None:
        """Take note of what is said at `place`, as plain bytes.

        Places are given in order. `key` is the row's fingerprint: of rows that share theirs, only the first counts.
        """
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
        _, distinct = np.unique(np.frombuffer(self._keys, dtype=np.uint64), return_index=True)
        distinct.sort()
        signatures = np.concatenate(self._signatures)
        # Let go, for there may be gigabytes.
        self._signatures = []
        if len(distinct) < len(signatures):
            signatures = signatures[distinct]
        like = np.full(len(distinct), -1)
        for band in range(_NUM_BINS // _BAND):
            _compare(signatures.view(np.uint64)[:, band], signatures, like)
        places = np.frombuffer(self._places, dtype=np.uint64)[distinct]
        later = like >= 0
        return Repeats(places[like[later]], places[later])

    def _hash(self) -> None:
        if self._texts:
            self._signatures.append(minhash(self._texts))
        self._texts = []
        self._num_bytes = 0


def minhash(texts: Sequence[bytes]) -> Signatures:
    """Return the MinHash of each of `texts`, of 8 bytes or more: shape (texts, 128).

    The share of equal numbers in two rows estimates the Jaccard similarity of the texts' sets of 8-byte pieces.
    """
    num_texts = len(texts)
    joined = b"".join(texts)
    num_pieces = len(joined) - _PIECE + 1
    # Every eight neighbouring bytes as one number.
    pieces = np.ndarray((num_pieces,), dtype="<u8", buffer=joined, strides=(1,))
    hashes = (pieces * _ODD >> _HASH_SHIFT).astype(np.uint32)
    lengths = np.fromiter(map(len, texts), np.int64, num_texts)
    bins = np.repeat(np.arange(0, num_texts * _NUM_BINS, _NUM_BINS), lengths)[:num_pieces]
    bins += hashes >> _BIN_SHIFT
    # Pieces that begin in one text and end in the next go into a bin of their own, which is left out.
    bins[(np.cumsum(lengths)[:-1, None] - np.arange(1, _PIECE)).ravel()] = num_texts * _NUM_BINS
    minima = np.full(num_texts * _NUM_BINS + 1, _EMPTY)
    np.minimum.at(minima, bins, hashes & (_EMPTY - np.uint32(1)))
    return _filled(minima[:-1].reshape(num_texts, _NUM_BINS))


def _filled(minima: npt.NDArray[np.uint32]) -> Signatures:
    """Return the low bytes of `minima`, each empty bin filled with the next one that is not, going round."""
    position = np.where(minima == _EMPTY, _NONE, np.arange(_NUM_BINS, dtype=np.uint8))
    following = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1]
    following = np.where(following == _NONE, following[:, :1], following)
    first = np.arange(0, minima.size, _NUM_BINS)[:, None]
    return minima.astype(np.uint8).ravel()[following + first]


def _compare(band: npt.NDArray[np.uint64], signatures: Signatures, like: npt.NDArray[np.int64]) -> None:
    """Fill in `like` for rows that agree in `band` with an earlier row and are indeed like it.

    Each is compared with the first and the previous of those it agrees with, which keeps many copies of one text from
    taking quadratic time.
    """
    # The upper bits of the band's hash with the row's number below: to sort these is ten times faster than argsort.
    bits = np.uint64(len(band).bit_length())
    keys = (band * _ODD) >> bits << bits | np.arange(len(band), dtype=np.uint64)
    keys.sort()
    order = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    keys >>= bits
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    rank = np.flatnonzero(~is_first)
    # The first of a group and the previous one are the same for its second row.
    third = rank[start[rank] != rank - 1]
    for earlier, later in ((order[start[rank]], order[rank]), (order[third - 1], order[third])):
        unknown = like[later] < 0
        earlier, later = earlier[unknown], later[unknown]
        for at in range(0, len(later), _BATCH_PAIRS):
            one, other = earlier[at : at + _BATCH_PAIRS], later[at : at + _BATCH_PAIRS]
            # `take` is several times faster than to index.
            same = signatures.take(one, axis=0) == signatures.take(other, axis=0)
            equal = np.count_nonzero(same, axis=1) / _NUM_BINS
            # One byte in 256 agrees by chance.
            alike = (equal - 1 / 256) / (1 - 1 / 256) >= SIMILARITY
            like[other[alike]] = one[alike]
