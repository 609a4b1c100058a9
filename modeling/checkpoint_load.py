"""Streaming a checkpoint into a model: from the file straight into each parameter or slice of one.

Peak memory is the parameters and, per thread, one buffer of 16 MiB for what has to be cast, dequantised or moved.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.utils import is_dtensor, is_local_dist_rank_0
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from transformers.integrations.accelerate import expand_device_map
from transformers.modeling_utils import LoadStateDictConfig, caching_allocator_warmup
from transformers.utils import logging
from transformers.utils.loading_report import LoadStateDictInfo

from .checkpoint_names import HEADS
from .checkpoint_plan import Plan, Read, Rules
from .kernels.block_fp8.op import dequantize_into
from .kernels.block_fp8.reference import BLOCK
from .safetensors_io import DTYPES, Reader, StoredTensor

logger = logging.get_logger(__name__)

BUFFER_BYTES = 16 << 20
# More threads do not read faster from a page cache; a network file system wants a few requests under way.
NUM_THREADS = min(8, max(2, os.cpu_count() or 2))


@dataclass
class BlockFp8Origin:
    """What a model loaded from block-fp8 remembers of its checkpoint, to write it again bit by bit.

    Attributes:
        config: the `quantization_config` of the checkpoint.
        scales: {name on disk of a weight that was fp8: its scales (M, N), fp32 on the CPU}; for a weight that is kept
            in fp8, the model itself holds them.
    """

    config: dict
    scales: dict[str, torch.Tensor] = field(default_factory=dict)


def stream(
    plan: Plan,
    destination: Callable[[str], torch.Tensor],
    set_tensor: Callable[[str, torch.Tensor], None],
) -> dict[str, torch.Tensor]:
    """Read everything in `plan` and return the scales of the weights that were dequantised, by name on disk.

    Args:
        plan: from `make_plan`, without problems.
        destination: makes the tensor that a state-dict key is read into, on its device and in its dtype; called once
            for each, when the first of its bytes is due.
        set_tensor: called with each key and its tensor once all of it is there.

    Raises:
        CheckpointError: a file changed or cannot be read.
    """
    waiting: dict[str, int] = {}
    for read in plan.reads:
        waiting[read.slot.key] = waiting.get(read.slot.key, 0) + 1
    tensors: dict[str, torch.Tensor] = {}
    scales: dict[str, torch.Tensor] = {}
    copier = Copier()
    files = [read.source.file for read in plan.reads]
    files += [read.scale.file for read in plan.reads if read.scale is not None]
    bar = logging.tqdm(total=len(plan.reads), desc="Loading weights")
    futures: list[Future] = []
    with Reader(files) as reader, ThreadPoolExecutor(NUM_THREADS) as pool, bar:

        def run(read: Read, target: torch.Tensor) -> None:
            scale = copier.copy(reader, read, target)
            if scale is not None:
                scales[read.slot.disk_name] = scale
            bar.update()

        try:
            for read in plan.reads:
                key = read.slot.key
                if key not in tensors:
                    tensors[key] = destination(key)
                futures.append(pool.submit(run, read, tensors[key][read.slot.index]))
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
    for key, tensor in tensors.items():
        set_tensor(key, tensor)
    return scales


class Copier:
    """Moves bytes from a file into a tensor, by way of a buffer where they have to change; one buffer a thread."""

    def __init__(self):
        self._local = threading.local()

    def copy(self, reader: Reader, read: Read, target: torch.Tensor) -> torch.Tensor | None:
        """Fill `target`; return the scales it was dequantised with, if it was."""
        if read.scale is not None:
            return self._dequantized(reader, read.source, read.scale, target)
        dtype = DTYPES[read.source.dtype]
        if dtype == target.dtype and target.device.type == "cpu" and target.is_contiguous():
            reader.read(read.source, 0, target)
        else:
            flat = target.view(-1)
            step = BUFFER_BYTES // dtype.itemsize
            for start in range(0, flat.numel(), step):
                part = flat[start : start + step]
                buffer = self._buffer(part.numel() * dtype.itemsize, target.device).view(dtype)
                reader.read(read.source, start * dtype.itemsize, buffer)
                part.copy_(buffer)
        return None

    def _dequantized(
        self, reader: Reader, source: StoredTensor, stored_scale: StoredTensor, target: torch.Tensor
    ) -> torch.Tensor:
        rows, columns = source.shape
        scale = torch.empty(stored_scale.shape, dtype=torch.float32)
        reader.read(stored_scale, 0, scale)
        on_device = scale.to(target.device)
        blocks = max(1, BUFFER_BYTES // (BLOCK[0] * columns))
        for block in range(0, len(scale), blocks):
            part = slice(block * BLOCK[0], min(rows, (block + blocks) * BLOCK[0]))
            count = part.stop - part.start
            codes = self._buffer(count * columns, target.device).view(torch.float8_e4m3fn).view(count, columns)
            reader.read(source, part.start * columns, codes)
            dequantize_into(target[part], codes.to(target.device), on_device[block : block + blocks])
        return scale

    def _buffer(self, nbytes: int, device: torch.device) -> torch.Tensor:
        """Return this thread's buffer; page-locked where it is on its way to a GPU."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
            self._local.buffer = buffer
        return buffer[:nbytes]


def differing_copies(copies: Iterable[tuple[StoredTensor, StoredTensor]]) -> list[StoredTensor]:
    """Return those MTP copies of embedding and head that differ from the main tensor beside them."""
    copies = list(copies)
    files = [tensor.file for pair in copies for tensor in pair]
    with Reader(files) as reader, ThreadPoolExecutor(NUM_THREADS) as pool:
        equal = list(pool.map(lambda pair: _equal(reader, *pair), copies))
    return [copy for (copy, _), same in zip(copies, equal, strict=True) if not same]


def _equal(reader: Reader, first: StoredTensor, second: StoredTensor) -> bool:
    if first.shape != second.shape:
        return False
    # Bytes of equal dtypes are compared as they are, so that NaN equals NaN.
    same_dtype = first.dtype == second.dtype
    numel, step = prod(first.shape), BUFFER_BYTES // 8
    for start in range(0, numel, step):
        parts = []
        for tensor in (first, second):
            part = torch.empty(min(step, numel - start), dtype=DTYPES[tensor.dtype])
            reader.read(tensor, start * part.itemsize, part)
            parts.append(part.view(torch.uint8) if same_dtype else part.double())
        if not torch.equal(*parts):
            return False
    return True


def rules_of(model: PreTrainedModel, ignore_mismatched_sizes: bool, uses_mtp: bool) -> Rules:
    """Return what `model` tolerates in a checkpoint.

    What is not of the base model may be missing, to be newly initialised; but not the head that the config says the
    checkpoint was saved with.
    """
    is_base, base = model.base_model is model, model.base_model_prefix + "."
    saved_with_head = _head(type(model).__name__) in map(_head, model.config.architectures or [])
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]

    def optional(key: str) -> bool:
        is_new = not is_base and not key.startswith(base) and not (saved_with_head and key.startswith(HEADS))
        return is_new or any(pattern.search(key) for pattern in patterns)

    return Rules(
        optional=optional,
        tied=model.all_tied_weights_keys,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        num_hidden_layers=model.config.num_hidden_layers,
        uses_mtp=uses_mtp,
        unexpected=tuple(model._keys_to_ignore_on_load_unexpected or ()),
    )


def _head(class_name: str) -> str | None:
    """Return what a class is for: `CausalLM` of both SeekletForCausalLM and DeepseekV3ForCausalLM."""
    _, found, head = class_name.partition("For")
    return head if found else None


def streaming_obstacle(model: PreTrainedModel, load_config: LoadStateDictConfig, keep_fp8: bool) -> str | None:
    """Return why `load_plan` cannot load, None if it can; transformers' own loader then has to."""
    if keep_fp8 and is_fsdp_enabled():
        return "keep_fp8=True under FSDP"
    if load_config.device_mesh is not None or any(is_dtensor(tensor) for tensor in model.state_dict().values()):
        return "tensor parallelism or FSDP2"
    if "disk" in (load_config.device_map or {}).values():
        return "weights offloaded to disk"
    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3"
    return None


def load_plan(
    model: PreTrainedModel, plan: Plan, load_config: LoadStateDictConfig
) -> tuple[LoadStateDictInfo, dict[str, torch.Tensor]]:
    """Load `plan` into `model`, on the meta device until then; return the report and the scales of what was fp8.

    Raises:
        CheckpointError: a file changed or cannot be read.
    """
    expected = model.state_dict(keep_vars=True)
    devices = expand_device_map(load_config.device_map or {"": "cpu"}, list(expected))
    if load_config.device_map is not None:
        caching_allocator_warmup(model, devices, None)

    def destination(key: str) -> torch.Tensor:
        dtype = _dtype_of(key, expected[key], load_config.dtype_plan or {})
        return torch.empty(expected[key].shape, dtype=dtype, device=devices[key])

    def set_tensor(key: str, tensor: torch.Tensor) -> None:
        if isinstance(expected[key], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=expected[key].requires_grad)
        # Without this mark transformers would initialise it anew.
        setattr(tensor, "_is_hf_initialized", True)  # noqa: B010 (not an attribute that tensors declare)
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, tensor)

    # With FSDP transformers fills the other processes' parameters with zeros, and FSDP sends them those of the first.
    if is_fsdp_enabled() and not is_local_dist_rank_0():
        return _report(Plan(unexpected=plan.unexpected)), {}
    scales = stream(plan, destination, set_tensor)
    for tensor in differing_copies(plan.copies):
        logger.warning(
            f"{tensor.name} differs from the main model's; MTP modules share embedding and head with it, "
            "so the main one is used"
        )
    if plan.passed_over:
        logger.info(f"{type(model).__name__} has no MTP modules: {plan.passed_over} tensors of theirs are not used")
    return _report(plan), scales


def _report(plan: Plan) -> LoadStateDictInfo:
    return LoadStateDictInfo(
        missing_keys=plan.missing,
        unexpected_keys=plan.unexpected,
        mismatched_keys=cast(Any, plan.mismatched),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )


def _dtype_of(key: str, tensor: torch.Tensor, dtype_plan: Mapping[str, torch.dtype]) -> torch.dtype:
    for pattern, dtype in dtype_plan.items():
        if re.search(pattern.replace("*", ".*"), key):
            return dtype
    return tensor.dtype
