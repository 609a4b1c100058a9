"""Engines that several processes train with, as `accelerate launch` names them to each, and a process that is gone."""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import distributed as dist

from .errors import RecipeError

# What they keep of a weight depends on that weight alone, so that experts can be shared out and put together again.
_BY_WEIGHT = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
# gloo has no class of its own for it.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Pair is not connected")


def uses_fsdp() -> bool:
    """Return whether accelerate was started with a configuration for FSDP."""
    return _is_set("ACCELERATE_USE_FSDP")


def uses_deepspeed() -> bool:
    """Return whether accelerate was started with a configuration for DeepSpeed."""
    return _is_set("ACCELERATE_USE_DEEPSPEED")


def check_engine(checkpoint: Path, saved_by: int, processes: int) -> None:
    """Check that a run can go on from `checkpoint`, saved by so many processes: DeepSpeed keeps optimizers for itself.

    Raises:
        RecipeError: it was saved under DeepSpeed and is to go on otherwise, or by another number of processes; or the
            other way round.
    """
    theirs = any(checkpoint.glob("global_step*"))
    if not theirs and not uses_deepspeed():
        return
    if theirs != uses_deepspeed():
        what = (
            "saved under DeepSpeed, which alone reads it"
            if theirs
            else "not saved under DeepSpeed, which reads no other"
        )
    elif saved_by != processes:
        what = f"saved under DeepSpeed by {saved_by} processes, and there are {processes}, which it does not go on with"
    else:
        return
    raise RecipeError(f"{checkpoint}: {what}; start as before, or a new run from its weights: model.path={checkpoint}")


def find_engine_mistakes(quantization: str | None) -> Iterator[tuple[str, str]]:
    """Yield (key of a recipe, what is wrong) of engines that exclude each other or the recipe, or are not there."""
    engines = [name for name, is_used in (("FSDP", uses_fsdp()), ("DeepSpeed", uses_deepspeed())) if is_used]
    if len(engines) > 1:
        yield "trainer", "accelerate was started with FSDP and with DeepSpeed; allowed: one of them"
    elif engines and quantization:
        advice = "start it with recipes/accelerate/ddp_8gpu.yaml, or set it to null"
        yield (
            "model.quantization",
            f"is {quantization}, and {engines[0]} does not share out quantised weights; {advice}",
        )
    if uses_deepspeed() and find_spec("deepspeed") is None:
        advice = "pip install 'seeklet[deepspeed]', or start it with recipes/accelerate/fsdp2_8gpu.yaml"
        yield "trainer", f"accelerate was started with DeepSpeed, which is not installed; {advice}"


def find_expert_parallel_mistakes(
    trainer: Mapping[str, Any], quantization: str | None, device_map: str | None
) -> Iterator[tuple[str, str]]:
    """Yield the same of a `trainer` section whose processes are to share the routed experts."""
    sharing = trainer.get("expert_parallel", 1)
    if sharing == 1:
        return
    key, others = "trainer.expert_parallel", {"FSDP": uses_fsdp(), "DeepSpeed": uses_deepspeed()}
    ddp = "start it with recipes/accelerate/ddp_8gpu.yaml or ddp_2x8gpu.yaml, or set it to 1"
    for engine in (engine for engine, is_used in others.items() if is_used):
        yield key, f"is {sharing}, and {engine} shares out the experts itself; {ddp}"
    if quantization:
        yield key, f"is {sharing}, and model.quantization is {quantization}, whose codes are not shared out; allowed: 1"
    if device_map:
        yield key, f"is {sharing}, and model.device_map: {device_map} leaves all to one process; leave one of them out"
    if trainer.get("fp16"):
        # A process would skip a step for its own experts' sake alone.
        yield key, f"is {sharing}, and trainer.fp16 scales each process's gradients by itself; allowed: trainer.bf16"
    if trainer.get("torch_compile"):
        yield key, f"is {sharing}, and trainer.torch_compile has not been tried with it; allowed: false"
    for name in ("auto_find_batch_size", "save_on_each_node"):
        if trainer.get(name):
            yield key, f"is {sharing}, and trainer.{name} lets one process do what the others do not; allowed: false"
    if (name := str(trainer.get("optim", _BY_WEIGHT[0]))) not in _BY_WEIGHT:
        yield key, f"is {sharing}, and trainer.optim is {name}; allowed with it: {', '.join(_BY_WEIGHT)}"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # A single process may read the recipe for a plan, or a dry run.
    if processes > 1 and processes % sharing:
        allowed = ", ".join(str(number) for number in range(1, processes + 1) if processes % number == 0)
        yield key, f"is {sharing} with {processes} processes; allowed: a divisor of their number, {allowed}"


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error says that another process of the group is not there any more."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
