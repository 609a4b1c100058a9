"""What a model writes: the published tensors, each made while its shard is written."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .checkpoint_load import BlockFp8Origin
from .checkpoint_names import SCALE, Slot, is_fp8_weight, mtp_copies, slots
from .errors import CheckpointError
from .kernels.block_fp8.reference import dequantize, requantize, scale_shape
from .safetensors_io import TensorGroup, TensorSpec, write_file

PUBLISHED_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "TIB": 2**40, "GIB": 2**30, "MIB": 2**20, "KIB": 2**10}


class Layout:
    """The tensors of a state dict as they are published; `groups()` lists them."""

    def __init__(
        self,
        state_dict: Mapping[str, torch.Tensor],
        num_hidden_layers: int,
        block_fp8: bool,
        origin: BlockFp8Origin | None,
        dtype: torch.dtype,
        load_offloaded: Callable[[str], torch.Tensor],
        tied: bool,
    ):
        """Describe a layout.

        Args:
            state_dict: the model's, fused experts included; entries may be on any device.
            num_hidden_layers: layers from here on are MTP modules.
            block_fp8: write in fp8 what is held or was loaded in fp8, or, without `origin`, what DeepSeek publishes
                in fp8; if not, write weights held in fp8 dequantised.
            origin: what the model remembers of a block-fp8 checkpoint.
            dtype: of weights that are dequantised.
            load_offloaded: returns the tensor of a state-dict key that is on the meta device.
            tied: whether the embedding is the head.
        """
        self.state_dict = state_dict
        self.num_hidden_layers = num_hidden_layers
        self.block_fp8 = block_fp8
        self.origin = origin
        self.dtype = dtype
        self.load_offloaded = load_offloaded
        self.tied = tied
        self._loaded: tuple[str, torch.Tensor] | None = None

    def groups(self) -> list[TensorGroup]:
        """Return all tensors to write, layer by layer; those that have to be made together are one group."""
        groups = []
        for key, tensor in self.state_dict.items():
            if tensor.dtype == torch.float8_e4m3fn and key + SCALE in self.state_dict:
                scales = slots(key + SCALE, self.state_dict[key + SCALE].shape)
                groups += map(self._kept, slots(key, tensor.shape), scales)
            elif not self._is_scale_of_kept(key):
                groups += [self._group(slot, tensor.dtype) for slot in slots(key, tensor.shape)]
        for name, key in mtp_copies(self.state_dict, self.num_hidden_layers, self.tied).items():
            tensor = self.state_dict[key]
            groups.append(self._raw(Slot(name, key, tuple(tensor.shape)), tensor.dtype))
        return sorted(groups, key=lambda group: _natural(group.specs[0].name))

    def _is_scale_of_kept(self, key: str) -> bool:
        weight = self.state_dict.get(key.removesuffix(SCALE)) if key.endswith(SCALE) else None
        return weight is not None and weight.dtype == torch.float8_e4m3fn

    def _group(self, slot: Slot, dtype: torch.dtype) -> TensorGroup:
        name = slot.disk_name
        was_fp8 = is_fp8_weight(name) if self.origin is None else name in self.origin.scales
        if self.block_fp8 and was_fp8 and dtype.is_floating_point and len(slot.shape) == 2:
            return TensorGroup(_fp8_specs(slot), lambda: self._requantized(slot))
        return self._raw(slot, dtype)

    def _raw(self, slot: Slot, dtype: torch.dtype) -> TensorGroup:
        return TensorGroup((TensorSpec(slot.disk_name, dtype, slot.shape),), lambda: (self._part(slot),))

    def _kept(self, slot: Slot, scale: Slot) -> TensorGroup:
        if self.block_fp8:
            return TensorGroup(_fp8_specs(slot), lambda: (self._part(slot), self._part(scale)))
        spec = TensorSpec(slot.disk_name, self.dtype, slot.shape)
        return TensorGroup((spec,), lambda: (dequantize(self._part(slot), self._part(scale), self.dtype),))

    def _requantized(self, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
        old = self.origin.scales.get(slot.disk_name) if self.origin is not None else None
        if old is not None and tuple(old.shape) != scale_shape(slot.shape[0], slot.shape[1]):
            old = None
        power_of_two = self.origin is not None and self.origin.config.get("scale_fmt") == "ue8m0"
        try:
            return requantize(self._part(slot), old, power_of_two)
        except ValueError as error:
            raise CheckpointError(f"{slot.disk_name}: {error}") from None

    def _part(self, slot: Slot) -> torch.Tensor:
        tensor = self.state_dict[slot.key]
        if tensor.device.type == "meta":
            # The experts of a layer are asked for one after the other, so one tensor is worth keeping.
            if self._loaded is None or self._loaded[0] != slot.key:
                self._loaded = slot.key, self.load_offloaded(slot.key)
            tensor = self._loaded[1]
        return tensor.detach()[slot.index]


def _fp8_specs(slot: Slot) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(slot.disk_name, torch.float8_e4m3fn, slot.shape),
        TensorSpec(slot.disk_name + SCALE, torch.float32, scale_shape(slot.shape[0], slot.shape[1])),
    )


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def parse_size(size: int | str) -> int:
    """Return a number of bytes from a number or from text like "5GB" (10^9) or "5GiB" (2^30).

    Raises:
        ValueError: `size` is neither.
    """
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", size.upper())
    if match is None:
        raise ValueError(f"max_shard_size is {size!r}; allowed: a number of bytes, or text like '5GB'")
    return int(float(match[1]) * _UNITS[match[2]])


def weights_name(variant: str | None, suffix: str = "") -> str:
    """Return `model{suffix}.safetensors`, with the variant as transformers has it: `model.fp16{suffix}.safetensors`."""
    stem, _, extension = SAFE_WEIGHTS_NAME.rpartition(".")
    return f"{stem}{'.' + variant if variant else ''}{suffix}.{extension}"


def index_name(variant: str | None) -> str:
    """Return `model.safetensors.index.json`, with the variant as transformers has it."""
    stem, _, extension = SAFE_WEIGHTS_INDEX_NAME.rpartition(".")
    return f"{stem}{'.' + variant if variant else ''}.{extension}"


def is_weights_file(name: str, variant: str | None) -> bool:
    """Return whether `name` is a file that a save with this variant writes: the weights, a shard, or the index."""
    parts = re.escape(weights_name(variant, "@")).replace("@", r"(-\d{5}-of-\d{5})?")
    return name == index_name(variant) or re.fullmatch(parts, name) is not None


def write_weights(
    folder: Path,
    groups: Sequence[TensorGroup],
    max_shard_bytes: int,
    variant: str | None,
    total_parameters: int,
) -> None:
    """Write all groups into `folder`: one file, or shards of at most `max_shard_bytes` and their index.

    A group larger than that is a shard of its own.
    """
    shards: list[list[TensorGroup]] = []
    size = max_shard_bytes
    for group in groups:
        if size + group.nbytes > max_shard_bytes or not shards:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += group.nbytes
    weight_map = {}
    bar = logging.tqdm(total=sum(group.nbytes for group in groups), unit="B", unit_scale=True, desc="Writing weights")
    with bar:
        for number, shard in enumerate(shards, start=1):
            suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            name = weights_name(variant, suffix)
            weight_map.update({spec.name: name for group in shard for spec in group.specs})
            for nbytes in write_file(folder / name, shard, {"format": "pt"}):
                bar.update(nbytes)
    if len(shards) > 1:
        total_size = sum(group.nbytes for group in groups)
        metadata = {"total_parameters": total_parameters, "total_size": total_size}
        text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        (folder / index_name(variant)).write_text(text, encoding="utf-8")
