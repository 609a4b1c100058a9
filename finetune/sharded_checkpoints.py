"""Checkpoints that other processes go on from than saved them: whole models from shards (FSDP), shards from whole."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

# accelerate's names of what FSDP's processes write together.
_MODEL, _OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
# Trainer's, of what one process writes.
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"


def is_sharded(checkpoint: Path) -> bool:
    """Return whether FSDP's processes have saved a checkpoint, each its part."""
    return (checkpoint / _MODEL).is_dir()


def load_model_shards(model: nn.Module, checkpoint: Path) -> None:
    """Load a sharded checkpoint into a model that is whole; of one with an adapter, what is trained."""
    is_adapter = isinstance(model, PeftModel)
    tensors: dict[str, Any] = get_peft_model_state_dict(model) if is_adapter else dict(model.state_dict())
    _read(checkpoint / _MODEL, {"model": tensors})
    if is_adapter:
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors)


def load_optimizer_shards(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load the optimizer's state of a sharded checkpoint where model and optimizer are whole."""
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    _read(checkpoint / _OPTIMIZER, state)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def load_whole_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load the optimizer's state of a whole checkpoint where model and optimizer are sharded; on every process.

    In the file weights go by their number over all groups, in memory by their name.
    """
    saved = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", mmap=True, weights_only=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # An optimizer of accelerate's holds the one that has these groups.
    in_order = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    name_of = dict(zip(numbers, (name for group in in_order for name in group), strict=True))
    state = {
        "state": {name_of[number]: values for number, values in saved["state"].items()},
        "param_groups": [
            group | {"params": ordered} for group, ordered in zip(saved["param_groups"], in_order, strict=True)
        ],
    }
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _read(folder: Path, state: dict[str, Any]) -> None:
    # By this process alone: each has the whole model.
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
