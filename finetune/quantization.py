"""What a recipe wants of bitsandbytes: `model.quantization`, as `from_pretrained` is asked for it, and optimizers."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from seeklet.modeling import SeekletConfig
from seeklet.modeling.blockwise import check_quantization
from seeklet.modeling.errors import ConfigError

from .errors import RecipeError

logger = logging.getLogger(__name__)
# How the names of transformers' optimizers begin that are bitsandbytes' own.
_OPTIMIZERS = ("paged_", "lion_", "ademamix", "rmsprop_bnb", "adamw_8bit", "adamw_bnb")


def check_optimizer(name: str, on_gpu: bool) -> None:
    """Check that transformers' optimizer of this name can be had, and say where it is not all that its name says.

    Raises:
        RecipeError: it is bitsandbytes', which is not installed or has no such optimizer without a GPU.
    """
    if is_of_bitsandbytes(name) and find_spec("bitsandbytes") is None:
        needs = 'needs bitsandbytes, which is not installed; pip install "seeklet[quantization]"'
        raise RecipeError(f"trainer.optim: {name} {needs}")
    if name.startswith("paged_") and not on_gpu:
        unpaged = name.removeprefix("paged_")
        # The one that asks CUDA for memory wherever it is.
        if unpaged.startswith("ademamix"):
            raise RecipeError(
                f"trainer.optim: {name} needs a GPU, whose driver pages its state; allowed here: {unpaged}"
            )
        logger.warning("trainer.optim: %s pages nothing without a GPU; its state stays in main memory", name)


def is_of_bitsandbytes(optimizer: str) -> bool:
    """Return whether transformers' optimizer of this name is bitsandbytes' own."""
    return optimizer.startswith(_OPTIMIZERS)


def quantized_by(
    quantization: str, config: PreTrainedConfig, dtype: torch.dtype | str, double: bool = False
) -> dict[str, Any]:
    """Return the arguments that load a model in this type: ours for our classes, transformers' for all others.

    `double`: with scales that are quantised, too.

    Raises:
        RecipeError: bitsandbytes is not installed, or the model cannot be quantised.
    """
    try:
        kind = check_quantization(quantization)
    except ConfigError as error:
        raise RecipeError(f"model.{error}") from None
    if isinstance(config, SeekletConfig):
        return {"quantize": kind, "quantize_twice": double}
    if (stored := getattr(config, "quantization_config", None)) is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise RecipeError(f"model.quantization is {kind}, but the checkpoint is quantised already ({method})")
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=double,
    )
    return {"quantization_config": four_bits}
