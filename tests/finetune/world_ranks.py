"""What each process of the tests over several world sizes runs: one training, whatever the number of processes."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

Engine = Literal["ddp", "fsdp"]

STEPS, SAVED_AT = 20, 10
ROWS = 20
# As in recipes/accelerate/fsdp2_8gpu.yaml, but for the CPU.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


class FirstGradients(TrainerCallback):
    """Keeps the whole gradients of a run's first step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Gather what is spread over processes, all of which take part."""
        if not self.found:
            grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
            self.found = {
                name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
                for name, grad in grads.items()
                if grad is not None
            }


def make(folder: Path, world: int, adapts: bool = False, **settings: Any) -> Any:
    """Return the fp32 trainer of a mixture of experts or its adapter: AdamW, four rows a step, MTP, balance loss."""
    from tests.finetune.lora.adapters import attached
    from tests.finetune.test_sft_trainer import make_rows, make_trainer, mixture

    model = mixture().float()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.3, 0.3, len(buffer)))
    defaults: dict[str, Any] = {
        "max_steps": STEPS,
        "optim": "adamw_torch",
        "learning_rate": 1e-2 if adapts else 1e-3,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4 // world,
        "save_strategy": "steps",
        "save_steps": SAVED_AT,
    }
    model = attached(model, "attention", "routed_experts", "mtp") if adapts else model
    return make_trainer(model, folder, make_rows([9, 5, 7, 6] * (ROWS // 4)), **defaults | settings)


def losses(trainer: Any) -> list[float]:
    """Return the loss of each step that is in the log."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def join(folder: Path, engine: Engine, world: int, rank: int, port: str, adapts: bool, resumed: Path | None) -> None:
    """Train as one of `world` processes, from the checkpoint `resumed` where one is named; leave the losses."""
    enter(world, rank, port)
    if engine != "ddp":
        os.environ |= FSDP
        shard_on_cpu()
    trainer = make(folder, world, adapts)
    if engine != "ddp" and rank:
        # As loading leaves all but the first process.
        for tensor in trainer.model.state_dict().values():
            tensor.zero_()
    gradients = FirstGradients()
    trainer.add_callback(gradients)
    assert trainer.is_fsdp_enabled == (engine != "ddp") and trainer.accelerator.num_processes == world
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.save_trained(folder / "model")
    torch.save(losses(trainer), folder / f"rank{rank}.pt")
    torch.save(gradients.found, folder / f"gradients{rank}.pt")


def enter(world: int, rank: int, port: str, per_node: int | None = None) -> None:
    """Let this process be one of `world`, `per_node` of which are on a node, in the eyes of accelerate."""
    torch.set_num_threads(1)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(per_node or world)}
    os.environ |= group | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}


def shard_on_cpu() -> None:
    """Let accelerate shard for CPUs, too, as PyTorch does: it asks for several GPUs."""
    from accelerate import DistributedType, PartialState
    from trl import SFTConfig

    prepare = SFTConfig.__post_init__

    def prepare_as_gpus(self: SFTConfig) -> None:
        prepare(self)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    SFTConfig.__post_init__ = prepare_as_gpus
