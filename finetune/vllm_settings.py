"""What a recipe that leaves its samples to vLLM may not say: settings of the other mode, weights it cannot have."""

import os
from collections.abc import Iterator
from typing import Any

# Of TRL's configs: what only one of the two modes looks at.
_OF_MODE = {
    "server": (
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_group_port",
    ),
    "colocate": (
        "vllm_gpu_memory_utilization",
        "vllm_tensor_parallel_size",
        "vllm_max_model_length",
        "vllm_enable_sleep_mode",
        "vllm_model_impl",
    ),
}
_ON_SERVER = {
    "vllm_gpu_memory_utilization": "--gpu-memory-utilization",
    "vllm_tensor_parallel_size": "--tensor-parallel-size",
    "vllm_max_model_length": "--max-model-len",
    "vllm_enable_sleep_mode": "--enable-sleep-mode",
    "vllm_model_impl": "--model-impl",
}


def find_vllm_mistakes(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of a recipe of stage grpo or distill in what it says of vLLM."""
    trainer = recipe.trainer
    given = [name for name in trainer if name.startswith("vllm_")]
    if given and "use_vllm" not in trainer:
        yield f"trainer.{given[0]}", "has no effect without trainer.use_vllm: true"
    if not trainer.get("use_vllm"):
        return
    for section in ("rollout", "distillation"):
        for name in ("use_mtp", "replay_routing", "record_router"):
            if getattr(getattr(recipe, section, None), name, False):
                yield f"{section}.{name}", "is of seeklet's own samples, and trainer.use_vllm leaves them to vLLM"
    mode = trainer.get("vllm_mode", "colocate")
    other = "server" if mode == "colocate" else "colocate"
    for name in (name for name in _OF_MODE[other] if trainer.get(name) is not None):
        advice = f"; give {_ON_SERVER[name]} to vllm serve" if mode == "server" else ""
        yield f"trainer.{name}", f"is of trainer.vllm_mode: {other}, and that is {mode}{advice}"
    if trainer.get("vllm_server_base_url") and (both := {"vllm_server_host", "vllm_server_port"} & set(trainer)):
        yield (
            "trainer.vllm_server_base_url",
            f"names the server, and so does trainer.{min(both)}; leave one of them out",
        )
    if mode == "colocate":
        yield from _find_colocated_mistakes(recipe)
    held = recipe.model.quantization or ("fp8" if recipe.model.fp8 == "keep" else None)
    if held:
        yield (
            "trainer.use_vllm",
            f"sends vLLM the weights with the adapter merged, which those held in {held} cannot be; set it to false, "
            "for seeklet's own samples",
        )


def _find_colocated_mistakes(recipe: Any) -> Iterator[tuple[str, str]]:
    trainer, processes = recipe.trainer, int(os.environ.get("WORLD_SIZE", "1"))
    sharing = trainer.get("vllm_tensor_parallel_size", 1)
    # A single process may read the recipe for a plan, or a dry run.
    if processes > 1 and processes % sharing:
        allowed = ", ".join(str(number) for number in range(1, processes + 1) if processes % number == 0)
        yield (
            "trainer.vllm_tensor_parallel_size",
            f"is {sharing} with {processes} processes; allowed: a divisor of their number, {allowed}",
        )
    length, new = trainer.get("vllm_max_model_length"), trainer.get("max_completion_length")
    if length is not None and new is not None and length < (longest := new + (recipe.prompts.max_tokens or 0)):
        yield (
            "trainer.vllm_max_model_length",
            f"is {length}, but prompts.max_tokens and trainer.max_completion_length make {longest}",
        )
