"""Streaming a checkpoint into a model in 4 or 8 bits: each matrix is quantised as it is read.

Peak memory is the quantised model and, per thread, one matrix and what quantising some of its rows takes.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import expand_device_map
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging
from transformers.utils.loading_report import LoadStateDictInfo

from .blockwise import Quantization
from .checkpoint_load import NUM_THREADS, Copier, load_plan
from .checkpoint_plan import Plan, Read
from .quantized import LARGEST, QuantizedExperts, QuantizedLinear, install_quantized, put
from .safetensors_io import Reader


def load_quantized(
    model: PreTrainedModel,
    plan: Plan,
    load_config: LoadStateDictConfig,
    quantization: Quantization,
    twice: bool = False,
) -> LoadStateDictInfo:
    """Load `plan`, made for `model` as it is, after putting quantised layers into it; return the report.

    Raises:
        CheckpointError: a file changed or cannot be read.
        ConfigError: a weight has rows that cannot be cut into blocks.
    """
    dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    keys = set(install_quantized(model, quantization, twice))
    devices = expand_device_map(load_config.device_map or {"": "cpu"}, list(dtypes))
    info, _ = load_plan(model, replace(plan, reads=[r for r in plan.reads if r.slot.key not in keys]), load_config)
    for key in keys:
        _materialize(model, key, torch.device(devices[key]))
    reads = [read for read in plan.reads if read.slot.key in keys]
    files = [tensor.file for read in reads for tensor in (read.source, read.scale) if tensor is not None]
    copier = Copier()
    bar = logging.tqdm(total=len(reads), desc=f"Quantising weights to {quantization}")
    with Reader(files) as reader, ThreadPoolExecutor(NUM_THREADS) as pool, bar:

        def run(read: Read) -> None:
            matrix = torch.empty(read.slot.shape, dtype=dtypes[read.slot.key], device=devices[read.slot.key])
            copier.copy(reader, read, matrix)
            path, _, key = read.slot.key.rpartition(".")
            put(cast(QuantizedLinear | QuantizedExperts, model.get_submodule(path)), key, read.slot.index, matrix)
            bar.update()

        for _ in pool.map(run, reads):
            pass
    return info


def _materialize(model: nn.Module, key: str, device: torch.device) -> None:
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    codes = nn.Parameter(torch.zeros_like(module.get_parameter(name), device=device), requires_grad=False)
    largest = torch.zeros_like(module.get_buffer(name + LARGEST), device=device)
    for tensor in (codes, largest):
        # Without this mark transformers would initialise it anew.
        setattr(tensor, "_is_hf_initialized", True)  # noqa: B010 (not an attribute that tensors declare)
    setattr(module, name, codes)
    setattr(module, name + LARGEST, largest)
