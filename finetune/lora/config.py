"""SeekletLoraConfig: PEFT's LoraConfig in memory for seeklet's modules, and on disk for everybody's."""

import copy
import re
from collections.abc import Iterable
from typing import Any

from peft import LoraConfig

from .layers import CUSTOM_MODULES

# PEFT takes these, as the last part of a module's name, for the routed experts of a DeepSeek-V3 model in transformers,
# whatever stands before them. As names of parameters they are taken as they stand.
_READ_AS_EXPERTS = ("gate_proj", "up_proj", "down_proj")


class SeekletLoraConfig(LoraConfig):
    """A LoraConfig whose adapters compute split in seeklet's modules, and load in transformers' through plain PEFT."""

    def __post_init__(self):
        super().__post_init__()
        self._register_custom_module(CUSTOM_MODULES)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json` as plain PEFT needs it for the same numbers in transformers' model."""
        published = LoraConfig(**_fields(self))
        modules, parameters = published_targets(self.target_modules, self.target_parameters)
        published.target_modules = modules  # pyright: ignore[reportAttributeAccessIssue]
        published.target_parameters = parameters or None
        if parameters:
            # Plain PEFT refuses dropout on parameters, also where nothing is trained.
            published.lora_dropout = 0.0
        published.save_pretrained(save_directory, **kwargs)

    @classmethod
    def of(cls, published: LoraConfig) -> "SeekletLoraConfig":
        """Return the config for a seeklet model of one that was read from a folder."""
        config = cls(**_fields(published))
        modules, parameters = _targets_in_memory(published.target_modules, published.target_parameters)
        named: Any = modules if isinstance(modules, str) else set(modules)
        config.target_modules = named
        config.target_parameters = parameters or None
        return config


def published_targets(modules: Any, parameters: Iterable[str] | None) -> tuple[Any, list[str]]:
    """Return modules and parameters with the projections of dense and shared MLPs as parameters.

    A pattern for modules (a text) is left as it is.
    """
    parameters = set(parameters or ())
    if isinstance(modules, str) or modules is None:
        return modules, sorted(parameters)
    misread = {name for name in modules if name.rpartition(".")[2] in _READ_AS_EXPERTS}
    return sorted(set(modules) - misread), sorted(parameters | {f"{name}.weight" for name in misread})


def _targets_in_memory(modules: Any, parameters: Iterable[str] | None) -> tuple[Any, list[str]]:
    """Return what `published_targets` made of modules and parameters, undone."""
    parameters = set(parameters or ())
    if isinstance(modules, str):
        return modules, sorted(parameters)
    linear = {name for name in parameters if re.search(rf"(^|\.)({'|'.join(_READ_AS_EXPERTS)})\.weight$", name)}
    return sorted({*(modules or ()), *(n.removesuffix(".weight") for n in linear)}), sorted(parameters - linear)


def _fields(config: LoraConfig) -> dict[str, Any]:
    return {name: copy.deepcopy(getattr(config, name)) for name in LoraConfig.__dataclass_fields__}
