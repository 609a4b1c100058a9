"""An adapter for serving engines: one pair of factors for every projection of every expert, as they hold them.

vLLM and SGLang know routed-expert adapters as `experts.E.gate_proj.lora_A.weight` and the like. The numbers are those
of the adapter in PEFT's format: of A each expert's rows, of B its columns; gate and up have the same A and half of B
each.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME as MODEL_CONFIG
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from seeklet.modeling.atomic_directory import replaced_directory
from seeklet.modeling.checkpoint_config import read_index

from ..errors import AdapterError
from .deltas import PEFT_PREFIX, expert_factors, split_tensors
from .files import FILES, read_config, read_file, read_router_biases, read_tensors
from .merge import check_out, find_base

# What is read of the base, where it is on the Hub: of its weights only the files with router biases.
DESCRIPTION = (MODEL_CONFIG, SAFE_WEIGHTS_INDEX_NAME)


def export_per_expert(
    adapter: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    overwrite: bool = False,
    revision: str | None = None,
) -> None:
    """Write `adapter` to the folder `out`, with a tensor for every expert; exact, or not at all.

    Args:
        adapter: a folder in PEFT's format.
        out: where to.
        base: the model the adapter was trained on, a folder or a name on the Hub; default: what the adapter says.
        overwrite: replace an adapter that is in `out`.
        revision: of `base`, where that is on the Hub; default: what the adapter says.

    Raises:
        AdapterError: it holds what no engine can add to a model it serves (an adapter of the router or the embedding,
            moved router biases, modules saved whole): merge it instead. Or it does not fit its base, that is not
            found, or `out` is not empty.
        OSError: writing fails.
    """
    adapter, out = Path(adapter), Path(out)
    check_out(out, (adapter,), overwrite)
    config, stored = read_config(adapter), read_tensors(adapter)
    pairs, whole = split_tensors(stored)
    # Of an embedding, engines would take one factor for the other.
    _check_engines_take_it(adapter, config, pairs, [*whole, *(name for name in stored if ".lora_embedding_" in name)])
    base, revision = base or config.base_model_name_or_path, revision or config.revision
    description = find_base(base, revision, adapter, DESCRIPTION)
    _check_router_biases(adapter, base or description, revision, description)
    num_experts = getattr(AutoConfig.from_pretrained(description), "n_routed_experts", None)
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


def _check_engines_take_it(adapter: Path, config: LoraConfig, pairs: Iterable[str], others: Iterable[str]) -> None:
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if getattr(config, name)]
    routers = [module for module in pairs if module.endswith(".mlp.gate")]
    for name in (*patterns, *others, *routers):
        raise AdapterError(f"{adapter}: {name} cannot be exported, engines do not take it; merge the adapter")


def _check_router_biases(adapter: Path, base: str | Path, revision: str | None, description: Path) -> None:
    biases, index = read_router_biases(adapter), description / SAFE_WEIGHTS_INDEX_NAME
    if not biases:
        return
    weight_map = read_index(str(index)) if index.is_file() else dict.fromkeys(biases, SAFE_WEIGHTS_NAME)
    missing = sorted(biases.keys() - weight_map.keys())
    if missing:
        raise AdapterError(f"{adapter}: {missing[0]} is not in {base}; name the model it was trained on with --base")
    files = {weight_map[name] for name in biases}
    folder = find_base(base, revision, adapter, sorted(files))
    for file in sorted(files):
        names = [name for name in biases if weight_map[name] == file]
        for name, before in read_file(folder / file, names)[0].items():
            if not torch.equal(before.float(), biases[name].float()):
                raise AdapterError(
                    f"{adapter}: {name} was moved in training (bias_update_speed), which an adapter cannot carry to "
                    "an engine; merge it"
                )
