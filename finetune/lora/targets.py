"""Which modules and parameters of a model a plain name such as "attention" stands for."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.attention import SeekletAttention
from seeklet.modeling.fp8 import Fp8Experts
from seeklet.modeling.layer import SeekletDecoderLayer
from seeklet.modeling.moe import SeekletExperts, SeekletMoE
from seeklet.modeling.mtp import SeekletMTPLayer
from seeklet.modeling.quantized import QuantizedExperts

from ..adapter_settings import PLAIN_TARGETS
from ..errors import RecipeError

LINEAR = (nn.Linear, Conv1D)
ADAPTABLE = (*LINEAR, nn.Embedding)
EXPERTS = (SeekletExperts, Fp8Experts, QuantizedExperts)
ROUTED, ROUTER = "routed_experts", "router"
# What PEFT adds to a model beside the modules it wraps.
_ADDED = re.compile(r"\.(lora_\w+|modules_to_save)(\.|$)")
# What other models call them: the module's name in its layer, or its class.
_ATTENTION, _MLP = re.compile("attn|attention", re.I), re.compile(r"mlp|feed_?forward|ffn|\bfc\d|\bff\b", re.I)


@dataclass
class Targets:
    """Names, from the model's own root on: of modules, and of parameters that are no module's `weight`."""

    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    def add(self, other: "Targets") -> None:
        """Take in the names of `other`."""
        self.modules += other.modules
        self.parameters += other.parameters

    def __len__(self) -> int:
        return len(self.modules) + len(self.parameters)


def find_targets(model: nn.Module, names: Sequence[str]) -> Targets:
    """Return everything in `model` that `names` stand for, each as short as it can be without meaning anything else.

    Args:
        model: any; what adapters that are on it have added does not count.
        names: plain names, or PEFT's: a module or parameter name, or its end.

    Raises:
        RecipeError: one stands for nothing in this model.
    """
    by_kind = adaptable(model)
    found = Targets()
    for name in names:
        targets = by_kind.get(name) or _named(model, name)
        if not targets:
            raise RecipeError(_no_match(model, name, by_kind))
        found.add(targets)
    return Targets(
        shortened(found.modules, plain_modules(model)), shortened(found.parameters, _plain_parameters(model))
    )


def adaptable(model: nn.Module) -> dict[str, Targets]:
    """Return what there is to adapt, by plain name, for those that have something."""
    by_kind: dict[str, Targets] = {}
    for name, module in plain_modules(model).items():
        kind = kind_of(model, name)
        if kind is not None and isinstance(module, LINEAR):
            by_kind.setdefault(kind, Targets()).modules.append(name)
        elif kind in (ROUTED, ROUTER) or (kind == "mtp" and isinstance(module, EXPERTS)):
            parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
            by_kind.setdefault(kind, Targets()).parameters += parameters
    return {name: by_kind[name] for name in PLAIN_TARGETS if name in by_kind}


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of `model` by the names they have without adapters: those that adapters are wrapped around."""
    # What is inside a wrapper comes behind it and takes its name.
    return {_plain(name): module for name, module in model.named_modules() if not _ADDED.search(name)}


def _plain_parameters(model: nn.Module) -> list[str]:
    return [_plain(name) for name, _ in model.named_parameters() if not _ADDED.search(name)]


def _plain(name: str) -> str:
    return name.replace(".base_layer", "").replace(".original_module", "")


def kind_of(model: nn.Module, name: str) -> str | None:
    """Return the plain name for the module `name` of `model`, also where adapters are wrapped around it; or None."""
    path = _path(model, name)
    if isinstance(model, SeekletPreTrainedModel):
        return _kind_in_seeklet(path)
    return _kind_elsewhere(path)


def _kind_in_seeklet(path: list[tuple[str, nn.Module]]) -> str | None:
    holders = [module for _, module in path]
    if any(isinstance(module, SeekletMTPLayer) for module in holders):
        return "mtp"
    if any(isinstance(module, SeekletAttention) for module in holders):
        return "attention"
    for index, module in enumerate(holders[:-1]):
        part = path[index + 1][0]
        if isinstance(module, SeekletMoE):
            return {"experts": ROUTED, "gate": ROUTER, "shared_experts": "shared_experts"}.get(part)
        if isinstance(module, SeekletDecoderLayer) and part == "mlp" and not isinstance(holders[index + 1], SeekletMoE):
            return "dense_mlp"
    return None


def _kind_elsewhere(path: list[tuple[str, nn.Module]]) -> str | None:
    """Tell by what stands below a numbered layer: transformers' models all have such a list of them."""
    for index, (part, _) in enumerate(path[:-1]):
        if not part.isdigit():
            continue
        child, module = path[index + 1]
        words = f"{child} {type(module).__name__}"
        if _ATTENTION.search(words):
            return "attention"
        routes = any("expert" in name for name, _ in module.named_modules())
        return "dense_mlp" if _MLP.search(words) and not routes else None
    return None


def _path(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return (its name there, the module) of everything from the root's child down to the module `name`."""
    path: list[tuple[str, nn.Module]] = []
    module: Any = model
    for part in name.split(".") if name else []:
        while not hasattr(module, part) and isinstance(module, BaseTunerLayer):
            module = getattr(module, "base_layer")  # noqa: B009  # declared on the layers of each method
        module = module.get_submodule(part)
        path.append((part, module))
    return path


def _named(model: nn.Module, name: str) -> Targets:
    """Return what PEFT would match: modules whose name is or ends in `name`, else parameters."""
    if name in PLAIN_TARGETS:
        return Targets()
    modules = [
        key for key, module in plain_modules(model).items() if _ends(key, name) and isinstance(module, ADAPTABLE)
    ]
    if modules:
        return Targets(modules=modules)
    return Targets(parameters=[key for key in _plain_parameters(model) if _ends(key, name)])


def _ends(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")


def shortened(wanted: Iterable[str], present: Iterable[str]) -> list[str]:
    """Return the shortest ends of names that, matched against all names `present`, give exactly those `wanted`."""
    wanted = set(wanted)
    meant, all_names = (Counter(end for name in names for end in _ends_of(name)) for names in (wanted, set(present)))
    chosen = {next(end for end in _ends_of(name) if meant[end] == all_names[end]) for name in wanted}
    return sorted(chosen)


def _ends_of(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[index:]) for index in range(len(parts) - 1, -1, -1)]


def _no_match(model: nn.Module, name: str, by_kind: dict[str, Targets]) -> str:
    linear = {key.rpartition(".")[2] for key, module in plain_modules(model).items() if isinstance(module, LINEAR)}
    what = f"adapter.targets: {name!r} matches nothing in {type(model).__name__}"
    return f"{what}; there are: {', '.join([*by_kind, *sorted(linear)])}"
