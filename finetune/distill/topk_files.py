"""The files of a teacher's most likely tokens: shards of rows, and a manifest that says whose they are."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..atomic_files import write_text
from ..errors import DataError
from .settings import TopKSettings

MANIFEST = "manifest.json"
FORMAT = 1
# Elements of each parameter that tell one model from another.
SAMPLED_ELEMENTS = 1024


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file: rows from `first` on, `num_rows` of them, with `num_tokens` positions."""

    file: str
    first: int
    num_rows: int
    num_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TopKManifest:
    """What a cache holds, and of whom. All of it but the shards has to be the same for a run to go on with it."""

    teacher: str
    """Its name on the Hub, or that of its folder."""
    revision: str | None
    teacher_sha256: str
    """Of its config and of some elements of each parameter."""
    tokenizer_sha256: str
    """Of its tokens and their numbers."""
    data_sha256: str
    """Of the rows, in their order."""
    num_rows: int
    vocabulary: int
    """Logits that the probabilities are of."""
    num_tokens: int
    temperature: float
    rows_per_shard: int
    batch_size: int
    """Padding decides on the last bits."""
    shards: tuple[Shard, ...] = ()
    format: int = FORMAT

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there."""
        return sum(shard.num_rows for shard in self.shards) == self.num_rows

    def write(self, folder: Path) -> None:
        """Put it into `folder`, whole or not at all."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    def check_same(self, other: "TopKManifest", folder: Path) -> None:
        """Check that what is in `folder`, this, is of the same teacher, data and settings as `other`.

        Raises:
            DataError: it is not.
        """
        there, wanted = asdict(replace(self, shards=())), asdict(replace(other, shards=()))
        for name, value in there.items():
            if value != wanted[name]:
                raise DataError(
                    f"{folder / MANIFEST}: {name} is {value!r}, and now it is {wanted[name]!r}; allowed: the same "
                    "teacher, data and settings as before, or another folder"
                )


def make_manifest(
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    keys: list[str],
    settings: TopKSettings,
    name: str,
    revision: str | None,
    vocabulary: int,
) -> TopKManifest:
    """Return the manifest of a cache that has no shards yet; `keys` are those of its rows."""
    return TopKManifest(
        teacher=name,
        revision=revision,
        teacher_sha256=fingerprint_model(teacher),
        tokenizer_sha256=fingerprint_tokenizer(tokenizer),
        data_sha256=hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        num_rows=len(keys),
        vocabulary=vocabulary,
        num_tokens=settings.num_tokens,
        temperature=settings.temperature,
        rows_per_shard=settings.rows_per_shard,
        batch_size=settings.batch_size,
    )


def read_manifest(folder: Path) -> TopKManifest:
    """Return the manifest in `folder`.

    Raises:
        DataError: there is none, or none that can be read.
    """
    path = folder / MANIFEST
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (number := fields.get("format")) != FORMAT:
            raise DataError(f"{path}: format is {number!r}; allowed: {FORMAT}, of a cache that this version has made")
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        return TopKManifest(**fields, shards=shards)
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no {MANIFEST}, so this is no cache of a teacher's tokens") from None
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: is damaged ({type(error).__name__}: {error}); delete the folder and let the teacher run again"
        ) from error


def is_whole(folder: Path) -> bool:
    """Return whether `folder` holds a cache of which nothing is missing; nothing in its files is looked at.

    Raises:
        DataError: its manifest cannot be read.
    """
    if not (folder / MANIFEST).exists():
        return False
    manifest = read_manifest(folder)
    return manifest.is_complete and all((folder / shard.file).exists() for shard in manifest.shards)


def check_shard(folder: Path, shard: Shard) -> None:
    """Check that a shard is as it was written.

    Raises:
        DataError: it is not, or is not there.
    """
    path = folder / shard.file
    again = "delete it and let the teacher run again, which makes only what is missing"
    if not path.is_file():
        raise DataError(f"{path}: is missing; {again}")
    if (found := sha256_of(path)) != shard.sha256:
        raise DataError(f"{path}: is damaged: its SHA-256 is {found[:12]}…, expected {shard.sha256[:12]}…; {again}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_key(row: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of a hash of the tokens of a row, and of which of them are trained on."""
    lengths = row["seq_lengths"] if "seq_lengths" in row else [len(row["input_ids"])]
    digest = hashlib.blake2b(digest_size=8)
    for part in (row["input_ids"], row["assistant_masks"], lengths):
        numbers = np.asarray(part, dtype=np.int64)
        digest.update(len(numbers).to_bytes(8, "big") + numbers.tobytes())
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of all tokens with their numbers."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


@torch.no_grad()
def fingerprint_model(model: nn.Module) -> str:
    """Return a SHA-256 of the names, shapes and types of all parameters and buffers, and of some elements of each.

    Whole checkpoints of hundreds of gigabytes would take longer to read than this is worth.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        step = max(1, tensor.numel() // SAMPLED_ELEMENTS)
        chosen = tensor.detach().flatten()[::step].to("cpu").contiguous()
        digest.update(chosen.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
