"""Writing a checkpoint anew with some of its tensors changed, one tensor at a time: no model is ever held."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checkpoint import CheckpointMixin
from .checkpoint_config import (
    config_to_save,
    own_config,
    read_index,
    set_true_mtp_depth,
    stored_names,
    take_block_fp8,
)
from .checkpoint_load import BlockFp8Origin, Copier, rules_of
from .checkpoint_names import Slot
from .checkpoint_plan import Read, make_plan, read_headers, refuse
from .checkpoint_save import PUBLISHED_FP8, Layout, index_name, parse_size, weights_name, write_weights
from .errors import CheckpointError
from .safetensors_io import Reader

Change = Callable[[torch.Tensor], torch.Tensor]


def rewrite_checkpoint(
    model_class: type[CheckpointMixin],
    source: Path,
    target: Path,
    changes: dict[str, Change],
    dtype: torch.dtype | None = None,
    block_fp8: bool = False,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write weights and config of the checkpoint in `source` to the directory `target`, which exists.

    Memory needed: one tensor, of routed experts that of one expert, in fp32.

    Args:
        model_class: what the checkpoint is loaded as.
        source: a directory in the published format, of any float dtype, block-fp8 included.
        target: where to; files there are overwritten one by one.
        changes: by name on disk, what is to be made of a tensor: called with it in fp32 (fp8 dequantised), returns it
            in any float dtype. MTP modules' copies of embedding and head follow the main tensor.
        dtype: of the weights written; by default that of the config, and bfloat16 for a block-fp8 checkpoint.
        block_fp8: write in DeepSeek's block-fp8 format, as `save_pretrained` does: blocks that did not change bit by
            bit.
        max_shard_size: as for `save_pretrained`.

    Raises:
        CheckpointError: the checkpoint is not what its config says, or there is no tensor of a name in `changes`.
        OSError: writing fails.
    """
    assert model_class.config_class is not None
    config, _ = own_config(model_class.config_class, source, None, {})
    quantization = take_block_fp8(config)
    names = stored_names(source, config, {})
    if names is None:
        raise CheckpointError(f"{source}: found no {weights_name(None)} and no {index_name(None)}")
    set_true_mtp_depth(config, names, model_class._uses_mtp)
    own: Any = None if quantization is not None else config.dtype
    dtype = dtype or own or torch.bfloat16
    with torch.device("meta"):
        model = model_class._from_config(config, dtype=dtype)
    reads = _plan(model, source)
    unknown = sorted(changes.keys() - reads.keys())
    if unknown:
        raise CheckpointError(f"{source}: found no tensor {unknown[0]}, which is to be changed")
    tensors = {key: t for key, t in model.state_dict().items() if key not in model.all_tied_weights_keys}
    files = [stored.file for read in reads.values() for stored in (read.source, read.scale) if stored is not None]
    with Reader(files) as reader:
        origin = None
        if quantization is not None:
            origin = BlockFp8Origin(quantization, _read_scales(reader, reads) if block_fp8 else {})
        layout = _Rewritten(reader, reads, changes, tensors, model, block_fp8, origin)
        written = (dict(PUBLISHED_FP8) if origin is None else origin.config) if block_fp8 else None
        config_to_save(model, tensors, written).save_pretrained(target)
        write_weights(target, layout.groups(), parse_size(max_shard_size), None, model.num_parameters())


class _Rewritten(Layout):
    """A layout whose tensors are read from another checkpoint when they are written."""

    def __init__(
        self,
        reader: Reader,
        reads: dict[str, Read],
        changes: dict[str, Change],
        tensors: dict[str, torch.Tensor],
        model: CheckpointMixin,
        block_fp8: bool,
        origin: BlockFp8Origin | None,
    ):
        tied = bool(model.all_tied_weights_keys)
        dtype, layers = model.dtype, model.config.num_hidden_layers
        super().__init__(tensors, layers, block_fp8, origin, dtype, lambda key: tensors[key], tied)
        self.reader, self.reads, self.changes = reader, reads, changes
        self.copier = Copier()

    def _part(self, slot: Slot) -> torch.Tensor:
        # A copy that an MTP module has on disk is read where its main tensor is.
        name = slot.disk_name if slot.disk_name in self.reads else slot.key
        change, dtype = self.changes.get(name), self.state_dict[slot.key].dtype
        read = self.reads[name]
        tensor = torch.empty(read.slot.shape, dtype=dtype if change is None else torch.float32)
        self.copier.copy(self.reader, read, tensor)
        return tensor if change is None else change(tensor).to(dtype)


def _plan(model: CheckpointMixin, source: Path) -> dict[str, Read]:
    """Return what to read, by the name it has on disk."""
    weight_map, files = None, [source / weights_name(None)]
    if not files[0].exists():
        weight_map = read_index(str(source / index_name(None)))
        files = [source / name for name in sorted(set(weight_map.values()))]
    stored, problems = read_headers(map(str, files), weight_map)
    plan, misfits = make_plan(model.state_dict(), stored, rules_of(model, False, model._uses_mtp))
    refuse([*problems, *misfits], f"{source} does not fit {type(model).__name__}")
    return {read.slot.disk_name: read for read in plan.reads}


def _read_scales(reader: Reader, reads: dict[str, Read]) -> dict[str, torch.Tensor]:
    """Return the scales of what is block-fp8, by the name of the weight."""
    scales = {}
    for name, read in reads.items():
        if read.scale is not None:
            scales[name] = torch.empty(read.scale.shape, dtype=torch.float32)
            reader.read(read.scale, 0, scales[name])
    return scales
