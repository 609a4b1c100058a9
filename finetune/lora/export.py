"""An adapter for serving engines: one pair of factors for every projection of every expert, as they hold them.

vLLM and SGLang know routed-expert adapters as `experts.E.gate_proj.lora_A.weight` and the like. The numbers are those
of the adapter in PEFT's format: of A each expert's rows, of B its columns; gate and up have the same A and half of B
each.
"""

import copy
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from seeklet.modeling.atomic_directory import replaced_directory

from ..errors import AdapterError
from .deltas import PEFT_PREFIX, expert_factors, split_tensors
from .files import FILES, read_config, read_router_biases, read_tensors
from .merge import check_out


def export_per_expert(
    adapter: str | Path, out: str | Path, base: str | Path | None = None, overwrite: bool = False
) -> None:
    """Write `adapter` to the folder `out`, with a tensor for every expert; exact, or not at all.

    Args:
        adapter: a folder in PEFT's format.
        out: where to.
        base: the model the adapter was trained on; default: what the adapter says.
        overwrite: replace an adapter that is in `out`.

    Raises:
        AdapterError: it holds what no engine can add to a model it serves (an adapter of the router, moved router
            biases, modules saved whole): merge it instead. Or it does not fit its base, or `out` is not empty.
        OSError: writing fails, or the base is not found.
    """
    adapter, out = Path(adapter), Path(out)
    check_out(out, (adapter,), overwrite)
    config = read_config(adapter)
    base = base or config.base_model_name_or_path
    if base is None:
        raise AdapterError(f"{adapter} does not say which model it was trained on; name it as base")
    _check_router_biases(adapter, Path(base))
    pairs, whole = split_tensors(read_tensors(adapter))
    unknown = [*whole, *(module for module in pairs if module.endswith(".mlp.gate"))]
    if unknown:
        raise AdapterError(f"{adapter}: {unknown[0]} cannot be exported, engines do not take it; merge the adapter")
    num_experts = getattr(AutoConfig.from_pretrained(base), "n_routed_experts", None)
    tensors = {}
    for module, (a, b) in pairs.items():
        if ".mlp.experts" not in module:
            tensors.update(_named(module, a, b))
            continue
        for name, factors in expert_factors(config, module, a, b, num_experts).items():
            tensors.update(_named(name.removesuffix(".weight"), factors.a, factors.b))
    with replaced_directory(out, lambda name: name in FILES, CONFIG_NAME) as staging:
        save_file(tensors, staging / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        _exported_config(config, pairs).save_pretrained(str(staging))


def _named(module: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    # Clones, because gate and up share one A, and safetensors writes no memory twice.
    return {f"{PEFT_PREFIX}{module}.lora_{x}.weight": factor.clone() for x, factor in (("A", a), ("B", b))}


def _exported_config(config: LoraConfig, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> LoraConfig:
    names = {module.rpartition(".")[2] for module in pairs if ".mlp.experts" not in module}
    if len(names) < len(pairs) and any(".mlp.experts" in module for module in pairs):
        names |= {"gate_proj", "up_proj", "down_proj"}
    config = copy.copy(config)
    config.target_modules, config.target_parameters = sorted(names), None
    return config


def _check_router_biases(adapter: Path, base: Path) -> None:
    biases = read_router_biases(adapter)
    files = sorted(base.glob("*.safetensors")) if biases else []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in biases.keys() & set(opened.keys()):
                if torch.equal(opened.get_tensor(name).float(), biases.pop(name).float()):
                    continue
                raise AdapterError(
                    f"{adapter}: {name} was moved in training (bias_update_speed), which an adapter cannot carry to "
                    "an engine; merge it"
                )
    if biases:
        raise AdapterError(f"{adapter} has router biases, and {base}, its base, is not here to compare them with")
