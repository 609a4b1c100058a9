"""One pass over the weights, in the order of their bytes: numbers that are none, hashes, and whether anything changed.

Each byte is read once, and not more than one piece of a tensor is held. Of the base, a few numbers of each tensor are
read; all of them only where those are equal everywhere.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import torch

from seeklet.modeling import CheckpointError
from seeklet.modeling.safetensors_io import DTYPES, Reader, StoredTensor

from .findings import Finding, error
from .shards import Shards

PIECE_BYTES = 1 << 22
SAMPLE_BYTES = 1 << 12


@dataclass
class WeightFacts:
    """What the pass found.

    Attributes:
        hashes: sha256 of each file by its name.
        num_read: bytes read of what is published.
        changed: whether a tensor differs from the base's; None where there is no base to compare with.
        findings: tensors with NaN or infinity.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    num_read: int = 0
    changed: bool | None = None
    findings: list[Finding] = field(default_factory=list)


def pass_over(
    shards: Shards, base: Shards | None = None, advance: Callable[[int], None] = lambda _: None
) -> WeightFacts:
    """Return what one pass over all files of `shards` shows; `advance` is told of every piece that was read.

    Raises:
        CheckpointError: a file cannot be read.
        OSError: likewise.
    """
    facts = WeightFacts()
    shared = _shared(shards, base) if base is not None else []
    if base is not None:
        # Another set of names, shapes or dtypes is a change, too.
        facts.changed = len(shared) < len(shards.tensors) or _any_differs(shared, facts, SAMPLE_BYTES)
    of_file = defaultdict(list)
    for tensor in shards.tensors.values():
        of_file[tensor.file].append(tensor)
    for file in shards.files:
        tensors = sorted(of_file[str(file)], key=lambda tensor: tensor.offset)
        facts.hashes[file.name] = _pass_over_file(file, tensors, facts, advance)
    if facts.changed is False:
        facts.changed = _any_differs(shared, facts, None)
    return facts


def _pass_over_file(file: Path, tensors: list[StoredTensor], facts: WeightFacts, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        start = min((tensor.offset for tensor in tensors), default=file.stat().st_size)
        for piece in _pieces(stream, start):
            digest.update(piece)
            facts.num_read += len(piece)
        for tensor in tensors:
            bad = ""
            for piece in _pieces(stream, tensor.nbytes):
                digest.update(piece)
                facts.num_read += len(piece)
                advance(len(piece))
                bad = bad or _not_finite(piece, DTYPES[tensor.dtype])
            if bad:
                facts.findings.append(
                    error(file.name, tensor.name, f"holds {bad}", "go back to a checkpoint from before it diverged")
                )
    return digest.hexdigest()


def _pieces(stream: BufferedReader, num_bytes: int) -> Iterator[bytearray]:
    while num_bytes > 0:
        piece = bytearray(min(PIECE_BYTES, num_bytes))
        if stream.readinto(piece) != len(piece):
            raise CheckpointError(f"{stream.name}: became shorter while it was read; copy it anew")
        num_bytes -= len(piece)
        yield piece


def _not_finite(piece: bytearray, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point or dtype == torch.float8_e8m0fnu:
        return ""
    values = torch.frombuffer(piece, dtype=dtype)
    if dtype.itemsize == 1:
        # e4m3 has no infinity, and neither kind of fp8 has `isfinite`.
        codes = torch.frombuffer(piece, dtype=torch.uint8) & 0x7F
        first_bad = 0x7F if dtype == torch.float8_e4m3fn else 0x7C
        return "NaN or infinity" if bool((codes >= first_bad).any()) else ""
    if bool(torch.isfinite(values).all()):
        return ""
    return "NaN" if bool(torch.isnan(values).any()) else "infinity"


def _shared(shards: Shards, base: Shards) -> list[tuple[StoredTensor, StoredTensor]]:
    pairs = [(own, base.tensors[name]) for name, own in shards.tensors.items() if name in base.tensors]
    return [(own, other) for own, other in pairs if own.shape == other.shape]


def _any_differs(pairs: list[tuple[StoredTensor, StoredTensor]], facts: WeightFacts, limit: int | None) -> bool:
    files = [tensor.file for pair in pairs for tensor in pair]
    with Reader(files) as reader:
        for own, other in pairs:
            num_values = own.nbytes // DTYPES[own.dtype].itemsize
            sampled = num_values if limit is None else min(num_values, limit // DTYPES[own.dtype].itemsize)
            for start in range(0, sampled, PIECE_BYTES):
                count = min(PIECE_BYTES, sampled - start)
                mine = _read_values(reader, own, start, count)
                facts.num_read += count * mine.element_size()
                theirs = _read_values(reader, other, start, count)
                if mine.dtype != theirs.dtype:
                    mine, theirs = _in_narrower(mine, theirs)
                if not torch.equal(_bits(mine), _bits(theirs)):
                    return True
    return False


def _read_values(reader: Reader, tensor: StoredTensor, start: int, count: int) -> torch.Tensor:
    dtype = DTYPES[tensor.dtype]
    values = torch.empty(count, dtype=dtype)
    reader.read(tensor, start * dtype.itemsize, values)
    return values


def _in_narrower(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    narrow = a.dtype if a.element_size() < b.element_size() else b.dtype
    return a.to(narrow), b.to(narrow)


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.uint8)
