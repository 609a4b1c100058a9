"""Reading and writing of safetensors files, byte by byte, without holding more than one tensor.

Format: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape, data_offsets), the data.
https://huggingface.co/docs/safetensors/index#format
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch

from .errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The limit of the safetensors library itself: a length beyond it is no safetensors file.
MAX_HEADER = 100_000_000
# One read or write call; Linux stops at 2 GiB - 4 KiB.
MAX_CALL = 1 << 30


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: where its bytes are and what they mean. `dtype` is the format's name, as `BF16`."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def read_header(file: str | os.PathLike) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, reading only its header.

    Raises:
        CheckpointError: the file is missing, unreadable, empty, truncated, or no safetensors file; says what was found.
    """
    path = os.fspath(file)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{path}: found {size} bytes {_start(head)}, expected a safetensors file{_cut(size)}"
                )
            header = json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: found no such file, expected a safetensors file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: expected a safetensors file, reading failed: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: found a corrupt header ({error}), expected a safetensors file") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: found a corrupt header ({type(header).__name__}), expected a safetensors file")
    header.pop("__metadata__", None)
    tensors = {name: _stored(name, path, entry, 8 + length) for name, entry in header.items()}
    _check_extent(path, tensors, size, 8 + length)
    return tensors


def _start(head: bytes) -> str:
    return f"starting with {head!r}" if head else "(an empty file)"


def _cut(size: int) -> str:
    return "" if size < 8 else "; it may be truncated inside its header"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return result


def _stored(name: str, path: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: {name}: found a corrupt entry {entry!r} in the header") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name}: found dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(_is_size(number) for number in (*shape, begin, end)):
        raise CheckpointError(
            f"{path}: {name}: found shape {shape!r} and offsets {[begin, end]!r}, expected integers from 0 on"
        )
    shape = tuple(shape)
    expected = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: {name}: found {end - begin} bytes at {begin}, expected {expected} bytes of {dtype} {shape}"
        )
    return StoredTensor(name, path, dtype, shape, start + begin, expected)


def _is_size(number: Any) -> bool:
    # Python calls JSON's true and false integers, too.
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _check_extent(path: str, tensors: dict[str, StoredTensor], size: int, start: int) -> None:
    """Raise CheckpointError unless the tensors cover the rest of the file without gap or overlap."""
    position = start
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            raise CheckpointError(f"{path}: {tensor.name}: found data at {tensor.offset}, expected it at {position}")
        position += tensor.nbytes
        if position > size:
            raise CheckpointError(
                f"{path}: truncated: found {size} bytes, expected at least {position} for {tensor.name} {tensor}"
            )
    if position != size:
        raise CheckpointError(
            f"{path}: found {size} bytes, expected {position}: {size - position} after the last tensor"
        )


class Reader:
    """Reads parts of files into memory; safe to share between threads. Close it, or use it in a `with` statement."""

    def __init__(self, files: Iterable[str]):
        self._descriptors: dict[str, int] = {}
        try:
            for file in dict.fromkeys(files):
                self._descriptors[file] = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            self.close()
            raise CheckpointError(f"{error.filename}: {error.strerror}") from None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, source: StoredTensor, start: int, into: torch.Tensor) -> None:
        """Fill `into`, contiguous CPU memory of any dtype, with the bytes of `source` from byte `start` on.

        Raises:
            CheckpointError: the file ends early, or reading fails.
        """
        memory, position = as_bytes(into), source.offset + start
        while len(memory):
            try:
                count = os.preadv(self._descriptors[source.file], [memory[:MAX_CALL]], position)
            except OSError as error:
                raise CheckpointError(f"{source.file}: {source.name}: reading failed: {error.strerror}") from None
            if count == 0:
                raise CheckpointError(
                    f"{source.file}: {source.name}: the file became shorter: found nothing at byte {position}, "
                    f"expected {len(memory)} more bytes"
                )
            memory, position = memory[count:], position + count


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor, writable."""
    return memoryview(cast(Any, tensor.detach().reshape(-1).view(torch.uint8).numpy()))


@dataclass(frozen=True)
class TensorSpec:
    """What is to be written: name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorGroup:
    """Tensors made together, when they are written and not before: `make()` returns them in the order of `specs`."""

    specs: tuple[TensorSpec, ...]
    make: Callable[[], Sequence[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Size in bytes of all of them."""
        return sum(spec.nbytes for spec in self.specs)


def write_file(
    file: str | os.PathLike, groups: Sequence[TensorGroup], metadata: dict[str, str] | None = None
) -> Iterator[int]:
    """Write a safetensors file group by group; yield the size in bytes of each as it is written.

    The file is on disk (fsync) when the iteration ends.

    Raises:
        OSError: writing fails (a full disk, for example).
    """
    specs = {spec.name: spec for group in groups for spec in group.specs}
    # Wide dtypes first, so that every tensor is aligned to its own size: readers map the file.
    offsets, end = {}, 0
    for spec in sorted(specs.values(), key=lambda spec: -spec.dtype.itemsize):
        offsets[spec.name] = end
        end += spec.nbytes
    head = _header(specs, offsets, metadata or {})
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write(descriptor, memoryview(head), 0)
        for group in groups:
            for spec, tensor in zip(group.specs, group.make(), strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), spec
                data = tensor.detach().to("cpu").contiguous()
                _write(descriptor, as_bytes(data), len(head) + offsets[spec.name])
            yield group.nbytes
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(specs: dict[str, TensorSpec], offsets: dict[str, int], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    # `offsets` is in ascending order, which readers rely on.
    for name, offset in offsets.items():
        spec = specs[name]
        data_offsets = [offset, offset + spec.nbytes]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": data_offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(descriptor: int, memory: memoryview, position: int) -> None:
    while len(memory):
        count = os.pwrite(descriptor, memory[:MAX_CALL], position)
        memory, position = memory[count:], position + count
