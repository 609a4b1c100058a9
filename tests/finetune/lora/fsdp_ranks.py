"""What each process of the two-process FSDP test runs."""

import os
from pathlib import Path
from typing import Any

import torch

STEPS, RESUMED_AT = 3, 2
TARGETS = ("attention", "routed_experts", "mtp")
# As in recipes/accelerate/fsdp2_8gpu.yaml.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def make(folder: Path, world: int) -> Any:
    """Return the trainer of a new adapter: four rows a step, a checkpoint after each."""
    from tests.finetune.lora.adapters import attached
    from tests.finetune.test_sft_trainer import make_rows, make_trainer, mixture

    return make_trainer(
        attached(mixture(), *TARGETS),
        folder,
        make_rows((9, 5, 7, 6, 8, 4, 9, 3, 6, 6, 5, 9)),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // world,
        save_strategy="steps",
        save_steps=1,
    )


def biases(trainer: Any) -> dict[str, torch.Tensor]:
    """Return the router biases of the model being trained."""
    from seeklet.finetune.lora.files import router_biases

    return {name: bias.clone() for name, bias in router_biases(trainer._bare_model().get_base_model()).items()}


def train_twice(folder: Path, world: int, rank: int, port: str) -> None:
    """Train to the end, and again from a checkpoint; leave both adapters and this process's biases in `folder`."""
    torch.set_num_threads(1)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= FSDP | group | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    from accelerate import DistributedType, PartialState
    from trl import SFTConfig

    prepare = SFTConfig.__post_init__

    def prepare_as_gpus(self: SFTConfig) -> None:
        prepare(self)
        # accelerate shards for several GPUs only, though PyTorch does for CPUs, too.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    SFTConfig.__post_init__ = prepare_as_gpus
    found = {}
    for name in ("whole", "resumed"):
        trainer = make(folder / name, world)
        assert trainer.is_fsdp_enabled and trainer.accelerator.num_processes == world
        checkpoint = str(folder / "whole" / f"checkpoint-{RESUMED_AT}")
        trainer.train(resume_from_checkpoint=checkpoint if name == "resumed" else None)
        found[name] = biases(trainer)
        trainer.save_trained(folder / name / "adapter")
    torch.save(found, folder / f"rank{rank}.pt")
