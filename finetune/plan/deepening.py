"""Deep models on the meta device, from one layer of each kind: what sixty like layers hold is known from one."""

from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from seeklet.modeling import SeekletConfig

from ..adapter_settings import AdapterSettings

# Of these types every layer has the same shapes; those of others may differ, and are made one by one.
_UNIFORM = ("llama", "mistral", "qwen2", "qwen3")


def one_of_each(config: PreTrainedConfig, adapter: AdapterSettings | None = None) -> dict[str, int] | None:
    """Return the fields of a config with one layer of each kind; None where layers may differ otherwise.

    They do as well where an adapter's targets name layers by number.
    """
    if adapter is not None and any(part.isdigit() for name in adapter.targets for part in name.split(".")):
        return None
    if isinstance(config, SeekletConfig):
        dense, sparse = _kinds(config)
        shallow = {"num_hidden_layers": min(dense, 1) + min(sparse, 1), "first_k_dense_replace": min(dense, 1)}
    elif config.model_type in _UNIFORM:
        shallow = {"num_hidden_layers": 1}
    else:
        return None
    return shallow if shallow["num_hidden_layers"] < config.num_hidden_layers else None


def deepen(model: Any, config: PreTrainedConfig) -> None:
    """Give `model`, made of `one_of_each(config)`, all layers of `config`, each a copy of the one of its kind."""
    layers = find_layers(model)
    dense, sparse = _kinds(config)
    kinds = [number for number in (dense, sparse) if number]
    shallow, behind = list(layers[: len(kinds)]), list(layers[len(kinds) :])
    copies = [
        [layer, *(deepcopy(layer) for _ in range(number - 1))] for layer, number in zip(shallow, kinds, strict=True)
    ]
    layers._modules.clear()
    layers.extend([*(layer for alike in copies for layer in alike), *behind])
    model.config.num_hidden_layers = config.num_hidden_layers
    if isinstance(config, SeekletConfig):
        model.config.first_k_dense_replace = config.first_k_dense_replace


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of a model that holds most of it: its layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def _kinds(config: Any) -> tuple[int, int]:
    """Return the numbers of layers without and with routed experts."""
    if not isinstance(config, SeekletConfig):
        return config.num_hidden_layers, 0
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    return dense, config.num_hidden_layers - dense
