"""FSDP's `cpu_ram_efficient_loading`: the first process alone reads a model's weights, and the others get their shards.

What accelerate does not share out has to be told: a model's buffers, and models that it does not shard or that TRL
shards from what each process has, which is zeros.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM

_SETTING = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def buffers_sent_whole(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Let `accelerator` share out `model` in the block, though it has buffers; each gets these as the first has them.

    accelerate takes all in the state dict for a shard of a weight (`fsdp2_load_full_state_dict`), router biases too.
    """
    prepare: Any = accelerator.prepare

    def prepare_and_send(*prepared: Any, **kwargs: Any) -> Any:
        if all(each is not model for each in prepared):
            return prepare(*prepared, **kwargs)
        buffers = [
            (module, name)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        ]
        for module, name in buffers:
            module._non_persistent_buffers_set.add(name)
        result = prepare(*prepared, **kwargs)
        for module, name in buffers:
            module._non_persistent_buffers_set.discard(name)
            dist.broadcast(module.get_buffer(name), 0)
        return result

    accelerator.prepare = prepare_and_send
    try:
        yield
    finally:
        accelerator.prepare = prepare


@contextmanager
def read_by_all() -> Iterator[None]:
    """Let each process read the weights of a model that is loaded in the block, as a teacher's."""
    before = os.environ.get(_SETTING)
    if before is None:
        yield
        return
    os.environ[_SETTING] = "false"
    try:
        yield
    finally:
        os.environ[_SETTING] = before


@contextmanager
def reference_like_policy() -> Iterator[None]:
    """Let the reference model that a GRPOTrainer of TRL makes in the block be of the class that the policy has.

    Each process reads its weights. TRL looks for the class by the name in the config, and there seeklet's are stock's.
    """
    # Supervised training need not wait for it.
    from trl.trainer import grpo_trainer

    load: Any = grpo_trainer.create_model_from_path

    def load_on_all(model_id: str, **kwargs: Any) -> Any:
        with read_by_all():
            return load(model_id, architecture=AutoModelForCausalLM, **kwargs)

    grpo_trainer.create_model_from_path = load_on_all
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = load
