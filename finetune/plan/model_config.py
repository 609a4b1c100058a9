"""Configs of published models, kept here so that they are planned without a network, and of any other model."""

import json
import os
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from seeklet.modeling import SeekletConfig
from seeklet.modeling.blockwise import Quantization
from seeklet.modeling.checkpoint_names import is_fp8_weight
from seeklet.modeling.fp8 import install_fp8
from seeklet.modeling.quantized import LARGEST, QuantizedLinear, install_quantized

from ..errors import RecipeError
from ..meta_model import load_config
from ..recipe import ModelSettings

CONFIGS = Path(__file__).parent / "configs"
# PyTorch's attention without a mask function: of whole sequences transformers makes no mask, but of fake tensors, whose
# numbers it cannot read, it makes one a sequence, of tokens x tokens.
_UNMASKED = "seeklet_planned_sdpa"


@cache
def published_names() -> dict[str, Path]:
    """Return Hub name -> file of the published configs that are kept here."""
    index = yaml.safe_load((CONFIGS / "index.yaml").read_text(encoding="utf-8"))
    return {name: CONFIGS / file for file, names in index.items() for name in names}


def published_config(name: str) -> PreTrainedConfig:
    """Return the published config of a model by its Hub name, or by its file's stem (deepseek-v3).

    Raises:
        RecipeError: it is not kept here.
    """
    file = published_names().get(name, CONFIGS / f"{name}.json")
    if not file.is_file():
        raise RecipeError(f"model {name} is not kept here; allowed: {', '.join(sorted(published_names()))}")
    fields = json.loads(file.read_text(encoding="utf-8"))
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def find_config(settings: ModelSettings) -> PreTrainedConfig:
    """Return the config of a recipe's model: a folder's, the one kept here, or the Hub's; nothing else is read.

    Raises:
        RecipeError: there is none.
    """
    folder = Path(os.path.expanduser(settings.path))
    if settings.path in published_names() and not folder.exists():
        return published_config(settings.path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise RecipeError(f"model.path: {settings.path} has no config.json; the plan needs that file, not the weights")
    return load_config(settings)


def held_dtype(config: PreTrainedConfig, settings: ModelSettings | None = None) -> torch.dtype:
    """Return what the weights are held in: what the settings say, or else the checkpoint's own."""
    if settings is not None and settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    stored = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


def build_on_meta(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    keep_fp8: bool = False,
    quantization: Quantization | None = None,
    double: bool = False,
) -> PreTrainedModel:
    """Return the model of a config on the meta device.

    With `keep_fp8` its linear layers and experts are in block-fp8, with `quantization` in 4 or 8 bits,
    their scales in 8 with `double`.
    """
    options = {}
    if not isinstance(config, SeekletConfig):
        AttentionInterface.register(_UNMASKED, sdpa_attention_forward)
        options["attn_implementation"] = _UNMASKED
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    if keep_fp8:
        install_fp8(model, is_fp8_weight, dtype)
    if quantization and isinstance(config, SeekletConfig):
        install_quantized(model, quantization, double)
    elif quantization:
        _quantize_linear_layers(model, quantization, double)
    return model


def _quantize_linear_layers(model: PreTrainedModel, quantization: Quantization, double: bool) -> None:
    """Put layers of as many bytes in place of all linear ones that transformers has bitsandbytes quantise."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            layer = QuantizedLinear(module, quantization, name, double)
            if quantization == "int8":
                # LLM.int8 has one scale for each row.
                setattr(layer, f"weight{LARGEST}", torch.zeros(module.out_features, 1, device="meta"))
            model.set_submodule(name, layer)
