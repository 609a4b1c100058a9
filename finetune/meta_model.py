"""The model of a recipe without its weights: the shapes and dtypes of everything it would hold."""

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.checkpoint_names import is_fp8_weight
from seeklet.modeling.fp8 import install_fp8
from seeklet.modeling.quantized import install_quantized

from .errors import RecipeError
from .hub_reach import is_cache_all, say_not_found
from .recipe import ModelSettings


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """Return the config of the recipe's model; only that is read, or fetched from the Hub.

    Raises:
        RecipeError: there is none, or it is of no known kind.
    """
    try:
        return AutoConfig.from_pretrained(
            os.path.expanduser(settings.path),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=is_cache_all(settings.path),
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: {settings.path}: {say_not_found(settings.path, error)}") from error


def build_meta_model(settings: ModelSettings) -> PreTrainedModel:
    """Return the model on the meta device, in the dtypes that training holds it in; no weight is read.

    Raises:
        RecipeError: there is no such model, or `fp8: keep` is asked of one that is not block-fp8.
    """
    config = load_config(settings)
    stored_dtype = getattr(config, "dtype", None) or torch.float32
    dtype = stored_dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=settings.trust_remote_code)
    if settings.fp8 == "keep":
        if getattr(config, "quantization_config", None) is None:
            raise RecipeError(f"model.fp8: keep, but {settings.path} is not a block-fp8 checkpoint")
        install_fp8(model, is_fp8_weight, dtype)
    if settings.quantization and isinstance(model, SeekletPreTrainedModel):
        install_quantized(model, settings.quantization, settings.double_quantization)
    return model
