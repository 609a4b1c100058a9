"""What a config says of a checkpoint and what is really in it: fp8, MTP modules, and what is written back."""

import copy
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoint_names import layer_number, true_mtp_depth
from .checkpoint_save import index_name, weights_name
from .errors import CheckpointError
from .kernels.block_fp8.reference import BLOCK
from .safetensors_io import read_header

logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where files come from: for the config, and again for the weights.
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
# Arguments that transformers itself sets on the config.
MODEL_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation", "experts_implementation")


def without_adapter(path: str | os.PathLike) -> str | os.PathLike:
    """Return where the weights are: `path`, or the base model that an adapter in the directory `path` is for."""
    adapter = Path(path, "adapter_config.json")
    if not adapter.is_file() or Path(path, CONFIG_NAME).is_file():
        return path
    return json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or path


def own_config(
    config_class: type[PreTrainedConfig], path: Any, config: Any, arguments: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return a config that may be changed, and those arguments of `from_pretrained` that are not for it.

    Args:
        config_class: of the model.
        path: where the checkpoint is.
        config: a config, a path to one, or None: the one beside the weights.
        arguments: keyword arguments of `from_pretrained`.
    """
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config), arguments
    for_config = {name: value for name, value in arguments.items() if name not in MODEL_ARGUMENTS}
    where = path if config is None else config
    loaded, unused = cast(Any, config_class.from_pretrained(where, return_unused_kwargs=True, **for_config))
    kept = {*unused, *HUB_ARGUMENTS, *MODEL_ARGUMENTS}
    return loaded, {name: value for name, value in arguments.items() if name in kept}


def take_block_fp8(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the block-fp8 `quantization_config`, removed from `config`; None, and no change, if it is another.

    Ours is DeepSeek's: e4m3, dynamic activations, blocks of 128 x 128. Anything else is for transformers.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    found = dict(found if isinstance(found, dict) else found.to_dict())
    ours = (
        found.get("quant_method") == "fp8"
        and found.get("fmt", "e4m3") == "e4m3"
        and found.get("activation_scheme", "dynamic") == "dynamic"
        and found.get("expert_dtype", "fp8") == "fp8"
        and tuple(found.get("weight_block_size") or ()) == BLOCK
    )
    if not ours:
        return None
    delattr(config, "quantization_config")
    return found


def asked_fp8(
    stored: dict[str, Any] | None, asked: QuantizationConfigMixin | dict | None, keep_fp8: bool
) -> tuple[bool, QuantizationConfigMixin | dict | None]:
    """Return whether to keep fp8 weights, and the quantization_config left for transformers.

    Args:
        stored: the block-fp8 `quantization_config` of the checkpoint, if it has one.
        asked: the `quantization_config` argument.
        keep_fp8: the argument of this name.

    Raises:
        ValueError: the two arguments contradict each other.
    """
    if stored is None or asked is None:
        return keep_fp8, asked
    settings = asked if isinstance(asked, dict) else asked.to_dict()
    if settings.get("quant_method") != "fp8":
        return keep_fp8, asked
    dequantize = settings.get("dequantize", getattr(asked, "dequantize", False))
    if keep_fp8 and dequantize:
        raise ValueError("keep_fp8=True and quantization_config.dequantize=True contradict each other")
    return not dequantize, None


def needed_dtype(config: PreTrainedConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` with a dtype where neither they nor the config have one: the first weight may be fp8."""
    asked = arguments.get("dtype", arguments.get("torch_dtype"))
    if asked in (None, "auto") and config.dtype is None:
        return {**arguments, "dtype": torch.bfloat16}
    return arguments


def stored_names(path: Any, config: PreTrainedConfig, arguments: dict[str, Any]) -> list[str] | None:
    """Return the names of all tensors of a checkpoint, from its index or its only file; None where neither is.

    Downloads what it reads, as loading would a moment later.

    Raises:
        CheckpointError: the file is not what it should be.
    """
    if getattr(config, "transformers_weights", None) is not None:
        return None
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    variant = arguments.get("variant")
    for name, read in ((weights_name(variant), read_header), (index_name(variant), read_index)):
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
        if file is not None:
            return list(read(file))
    return None


def read_index(file: str) -> dict[str, str]:
    """Return {tensor: file name} of the index `file`.

    Raises:
        CheckpointError: it is not what it should be.
    """
    try:
        weight_map = json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"]
        is_map = all(isinstance(name, str) for pair in weight_map.items() for name in pair)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: found a corrupt index ({error!r}), expected JSON with weight_map") from None
    if not is_map:
        raise CheckpointError(f"{file}: found a weight_map of other things, expected tensor names to file names")
    return weight_map


def set_true_mtp_depth(config: PreTrainedConfig, names: Iterable[str], uses_mtp: bool) -> None:
    """Set `num_nextn_predict_layers` to the number of MTP modules among the tensors `names`; 0 if not `uses_mtp`."""
    said = config.num_nextn_predict_layers
    found = true_mtp_depth(names, config.num_hidden_layers, said) if uses_mtp else 0
    if found != said:
        config.num_nextn_predict_layers = found
        why = "the checkpoint's number" if uses_mtp else "this class has no MTP modules"
        logger.info(f"num_nextn_predict_layers: {found} instead of {said}: {why}")


def config_to_save(
    model: PreTrainedModel, keys: Iterable[str], quantization: dict[str, Any] | None
) -> PreTrainedConfig:
    """Return the config to write beside the weights.

    Args:
        model: whose config it is; not changed.
        keys: of the state dict that is written, for the number of MTP modules.
        quantization: the block-fp8 `quantization_config` of the weights that are written, if they are fp8.
    """
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    layers = {number for number in map(layer_number, keys) if number is not None}
    config.num_nextn_predict_layers = len([n for n in layers if n >= config.num_hidden_layers])
    # Stale ones describe the checkpoint this model once came from.
    for name in ("quantization_config", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    if quantization is not None:
        config.quantization_config = quantization
    return config
