"""What an adapter on disk changes in the tensors of its base model, by the names these have on disk."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from ..errors import AdapterError

PEFT_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")
_EXPERTS = re.compile(r"(?P<experts>.+\.mlp\.experts)(?P<inner>\.base_layer)?")


class Factors(NamedTuple):
    """A (r, in) and B (out, r) of one matrix, and the scaling of their product."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` (out, in) plus `scaling * B A`, in fp32."""
        return torch.addmm(weight.float(), self.b.float(), self.a.float(), alpha=self.scaling)


def changes(
    config: LoraConfig, tensors: Mapping[str, torch.Tensor], num_experts: int | None
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return, by name on disk, what makes the merged tensor of the base's.

    Args:
        config: of the adapter.
        tensors: of the adapter, by PEFT's names.
        num_experts: `n_routed_experts` of the base model.

    Raises:
        AdapterError: the adapter is more than plain LoRA.
    """
    pairs, whole = split_tensors(tensors)
    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    made.update({name: partial(_replaced, name, tensor) for name, tensor in whole.items()})
    for module, (a, b) in pairs.items():
        experts = _EXPERTS.fullmatch(module)
        if experts is not None:
            for name, factors in expert_factors(config, module, a, b, num_experts).items():
                made[name] = factors.add_to
        elif a.shape[0] == b.shape[1]:
            made[f"{module}.weight"] = Factors(a, b, scaling(config, module, a.shape[0])).add_to
        else:
            raise AdapterError(f"{module}: lora_A is {tuple(a.shape)}, lora_B {tuple(b.shape)}; expected one rank")
    return made


def split_tensors(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return (A, B) by module, those of embeddings as for a linear layer, and what is saved whole by its name on disk.

    Raises:
        AdapterError: there is something else.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    whole = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PEFT_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match is not None:
            factor = {"A": "B", "B": "A"}[match["factor"]] if match["embedding"] else match["factor"]
            found.setdefault(match["module"], {})[factor] = tensor.t() if match["embedding"] else tensor
        elif ".lora_" in name:
            raise AdapterError(f"{key} is of a kind of LoRA that cannot be merged or exported; allowed: plain LoRA")
        else:
            whole[name] = tensor
    for module, factors in found.items():
        if len(factors) != 2:
            raise AdapterError(f"{module} has lora_{next(iter(factors))} only; expected lora_A and lora_B")
    return {module: (factors["A"], factors["B"]) for module, factors in found.items()}, whole


def expert_factors(
    config: LoraConfig, module: str, a: torch.Tensor, b: torch.Tensor, num_experts: int | None
) -> dict[str, Factors]:
    """Return the factors of every single expert's projections by the names of their weights on disk.

    Gate and up have the same A, and of B each has its half.

    Args:
        config: of the adapter.
        module: PEFT's wrapper: of two around one module the inner is gate_up_proj's, the outer down_proj's.
        a: (E*r, in), the experts one after the other.
        b: (out, r*E), the expert index fastest.
        num_experts: E.

    Raises:
        AdapterError: the factors do not fit so many experts.
    """
    match = _EXPERTS.fullmatch(module)
    assert match is not None
    if not num_experts or a.shape[0] % num_experts or a.shape[0] != b.shape[1]:
        raise AdapterError(f"{module}: lora_A is {tuple(a.shape)}, lora_B {tuple(b.shape)} for {num_experts} experts")
    rank = a.shape[0] // num_experts
    only_gate_up = not any(name.endswith("down_proj") for name in config.target_parameters or ())
    parts = ("gate", "up") if match["inner"] or only_gate_up else ("down",)
    parameter = f"{match['experts']}.{'gate_up' if len(parts) == 2 else 'down'}_proj"
    scale = scaling(config, parameter, rank)
    a, b = a.unflatten(0, (num_experts, rank)), b.unflatten(1, (rank, num_experts))
    return {
        f"{match['experts']}.{expert}.{part}_proj.weight": Factors(a[expert], half, scale)
        for expert in range(num_experts)
        for part, half in zip(parts, b[:, :, expert].chunk(len(parts)), strict=True)
    }


def _replaced(name: str, tensor: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    if tensor.shape != old.shape:
        raise AdapterError(f"{name}: the adapter has {tuple(tensor.shape)}, the base {tuple(old.shape)}")
    return tensor


def scaling(config: LoraConfig, name: str, rank: int) -> float:
    """Return the factor of an adapter of this rank on the module or parameter `name`."""
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
