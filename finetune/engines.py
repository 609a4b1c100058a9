"""Engines that several processes train with, as `accelerate launch` names them to each, and a process that is gone."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

from torch import distributed as dist

# gloo has no class of its own for it.
_LOST = ("Connection closed by peer", "Connection reset by peer")


def uses_fsdp() -> bool:
    """Return whether accelerate was started with a configuration for FSDP."""
    return _is_set("ACCELERATE_USE_FSDP")


def uses_deepspeed() -> bool:
    """Return whether accelerate was started with a configuration for DeepSpeed."""
    return _is_set("ACCELERATE_USE_DEEPSPEED")


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
        advice = "pip install deepspeed, or start it with recipes/accelerate/fsdp2_8gpu.yaml"
        yield "trainer", f"accelerate was started with DeepSpeed, which is not installed; {advice}"


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error says that another process of the group is not there any more."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
