"""What a finished GGUF file says of itself: whether it is whole, and what its tokenizer adds to a text.

The package gguf reads such a file, too, but takes five seconds for DeepSeek-V3's tokens, which are passed over here.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ExportError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# struct's letters of the other types of values, by their number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor of a GGUF file is.

    Attributes:
        shape: outermost first, as torch has it.
        kind: the number of its type in ggml.
        offset: of its first byte in the file.
        num_bytes: it takes.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The keys of a GGUF file, with None for lists, and its tensors by name."""

    keys: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(file: Path) -> GgufHeader:
    """Return what the header of a GGUF file says; no weight is read.

    Raises:
        ExportError: it is none, or it ends too early.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
            return _Reader(held).header()
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as problem:
        raise ExportError(f"{file.name}: is no whole GGUF file: {problem}") from None


def check_whole(file: Path) -> None:
    """Look a finished file over: a header that can be read, and all the bytes that it promises.

    Raises:
        ExportError: it is not whole.
    """
    tensors = read_header(file).tensors.values()
    promised = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if not promised or file.stat().st_size < promised:
        raise ExportError(f"{file.name}: what llama.cpp wrote has {file.stat().st_size:,} bytes of {promised:,}")


def adds_beginning(file: Path) -> bool:
    """Return whether llama.cpp puts the token of the beginning before a text by itself.

    The file says; where it does not, sentencepiece vocabularies have it and byte-level ones do not, but for Llama 3's
    (llama-vocab.cpp).
    """
    keys = read_header(file).keys
    said = keys.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    return keys.get("tokenizer.ggml.model") == "llama" or keys.get("tokenizer.ggml.pre") == "llama-bpe"


class _Reader:
    """Goes through the bytes of a header from the beginning."""

    def __init__(self, held: mmap.mmap):
        self._held = held
        self._at = 0

    def header(self) -> GgufHeader:
        # Of the extra gguf, whose absence is a finding.
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if self._held[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        self._number("I")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        keys = {}
        for _ in range(num_keys):
            name = self._string()
            keys[name] = self._value(self._number("I"))
        infos = []
        for _ in range(num_tensors):
            name = self._string()
            shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
            infos.append((name, shape, self._number("I"), self._number("Q")))
        alignment = keys.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in infos:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            size = math.prod(shape) // per_block * block_bytes
            tensors[name] = GgufTensor(shape, kind, start + offset, size)
        return GgufHeader(keys, tensors)

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._held, self._at)
        self._at += struct.calcsize(f"<{letter}")
        return value

    def _string(self) -> str:
        length = self._number("Q")
        text = self._held[self._at : self._at + length]
        if len(text) < length:
            raise ValueError("it ends in the middle of its header")
        self._at += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_SCALARS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner == _STRING:
            for _ in range(count):
                self._at += 8 + struct.unpack_from("<Q", self._held, self._at)[0]
        elif inner == _ARRAY:
            for _ in range(count):
                self._value(_ARRAY)
        else:
            self._at += count * struct.calcsize(f"<{_SCALARS[inner]}")
        return None
