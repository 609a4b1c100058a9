"""An adapter on disk: a folder in PEFT's format, and beside it the router biases, which PEFT knows nothing of.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's own, so that plain PEFT loads them on transformers'
model; `router_bias.safetensors` holds each router's `e_score_correction_bias` under its name in the model.

`base_model_name_or_path` says where the base was found, which `merge` and PEFT need: a name on the Hub, also where it
was loaded from the Hub's cache, else the path of a folder. A path means nothing on another machine and may give names
away: whoever publishes the adapter has to put the base's name on the Hub in its place. There is no other path in the
folder.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.atomic_directory import replaced_directory
from seeklet.modeling.moe import SeekletRouter

from ..errors import AdapterError
from ..inner_model import find_inside
from .attach import DEFAULT, add_further
from .config import SeekletLoraConfig

BIAS_FILE = "router_bias.safetensors"
FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, BIAS_FILE)
_BIAS, _DROPOUT = "e_score_correction_bias", "lora_dropout"
MAX_LISTED = 10


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = DEFAULT,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write one adapter of `model` to `folder`, with the router biases as they are now.

    A folder that holds an adapter changes from the old to the new one in one step; its other files stay. On several
    ranks, call it on one.

    Args:
        model: a PeftModel, or what accelerate, DDP or torch.compile made of one.
        folder: made if need be.
        adapter_name: which adapter.
        state_dict: of the PeftModel, where its own is not whole (FSDP, ZeRO-3).

    Raises:
        AdapterError: there is no such adapter.
        OSError: writing fails; what was in the folder is still there.
    """
    peft = peft_model(model)
    if adapter_name not in peft.peft_config:
        raise AdapterError(f"there is no adapter {adapter_name!r}; there are: {', '.join(peft.peft_config)}")
    config = peft.peft_config[adapter_name]
    tensors = get_peft_model_state_dict(
        peft, dict(state_dict) if state_dict is not None else None, adapter_name, save_embedding_layers=False
    )
    biases = router_biases(peft.get_base_model())
    with replaced_directory(folder, lambda name: name in FILES, CONFIG_NAME) as staging:
        _write(staging / SAFETENSORS_WEIGHTS_NAME, tensors, {_DROPOUT: str(getattr(config, _DROPOUT, 0.0))})
        if biases:
            _write(staging / BIAS_FILE, biases, {})
        _write_config(staging, config)


def load_adapter(
    model: PreTrainedModel | PeftModel,
    folder: str | Path,
    adapter_name: str = DEFAULT,
    trainable: bool = False,
    cut: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> PeftModel:
    """Return `model` with the adapter in `folder`, and with the router biases saved beside it.

    Into an adapter of this name that the model has, the weights are loaded; else one is made, active if it is the
    first, and frozen unless `trainable`. The biases are the model's own, so of several adapters the last one counts.
    `cut` returns what the model holds of a tensor, by its name in the file, where that is not all of it.

    Raises:
        AdapterError: the folder holds no adapter, or one that does not fit the model or the adapters it has.
    """
    folder = Path(folder)
    config, tensors, metadata = read_config(folder), *read_file(folder / SAFETENSORS_WEIGHTS_NAME)
    if cut is not None:
        tensors = {name: cut(name, tensor) for name, tensor in tensors.items()}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    biases = _read_biases(base, folder)
    if isinstance(model, PeftModel) and adapter_name in model.peft_config:
        adapted = model
    else:
        if isinstance(base, SeekletPreTrainedModel):
            config = SeekletLoraConfig.of(config)
            config.lora_dropout = float(metadata.get(_DROPOUT, config.lora_dropout))
        config.inference_mode = not trainable
        adapted = _add(model, config, adapter_name, trainable)
    misfits = _misfits(get_peft_model_state_dict(adapted, None, adapter_name, save_embedding_layers=False), tensors)
    if misfits:
        if adapted is not model:
            adapted.unload()
        raise AdapterError(f"{folder / SAFETENSORS_WEIGHTS_NAME} does not fit the model: {misfits}")
    set_peft_model_state_dict(adapted, tensors, adapter_name)
    buffers = {_plain(name): buffer for name, buffer in base.named_buffers()}
    for name, bias in biases.items():
        buffers[name].copy_(bias)
    return adapted


def peft_model(model: nn.Module) -> PeftModel:
    """Return the PeftModel inside what accelerate, DDP or torch.compile made of it.

    Raises:
        AdapterError: there is none.
    """
    found = find_inside(model, PeftModel)
    if found is None:
        raise AdapterError(f"a {type(model).__name__} has no adapter; use attach or load_adapter first")
    return found


def router_biases(base: nn.Module) -> dict[str, torch.Tensor]:
    """Return the bias (E,) of each router in `base`, by its name in a model without adapters."""
    biases = {}
    for name, module in base.named_modules():
        if isinstance(module, SeekletRouter):
            biases[_plain(f"{name}.{_BIAS}")] = module.e_score_correction_bias
    return biases


def read_config(folder: Path) -> LoraConfig:
    """Return PEFT's config in `folder`.

    Raises:
        AdapterError: there is none, or it is not LoRA's.
    """
    file = folder / CONFIG_NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: {error}; expected the config of an adapter") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        kind = found.get("peft_type") if isinstance(found, dict) else type(found).__name__
        raise AdapterError(f"{file}: peft_type is {kind!r}; allowed: LORA")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{file}: {str(error).strip().splitlines()[0]}") from None
    assert isinstance(config, LoraConfig)
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the adapter in `folder`, as PEFT names them there.

    Raises:
        AdapterError: the file is missing or broken.
    """
    return read_file(folder / SAFETENSORS_WEIGHTS_NAME)[0]


def read_router_biases(folder: Path) -> dict[str, torch.Tensor]:
    """Return the router biases in `folder` by their names in the model; none where an adapter has none.

    Raises:
        AdapterError: the file is broken.
    """
    return read_file(folder / BIAS_FILE)[0] if (folder / BIAS_FILE).exists() else {}


def read_file(file: Path, names: Iterable[str] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors of a safetensors file, all or those of these names, and its metadata.

    Raises:
        AdapterError: the file is missing or broken, or has no such tensor.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            present = opened.keys()
            wanted = present if names is None else list(names)
            missing = [name for name in wanted if name not in present]
            if missing:
                raise AdapterError(f"{file}: found no tensor {missing[0]}")
            return {name: opened.get_tensor(name) for name in wanted}, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file}: {error}; expected a safetensors file") from None


def _add(model: Any, config: LoraConfig, adapter_name: str, trainable: bool) -> PeftModel:
    if not isinstance(model, PeftModel):
        # PEFT takes the base from the model itself, and warns where the folder names another.
        config.base_model_name_or_path = model.name_or_path or None
        adapted = get_peft_model(model, config, adapter_name)
        assert isinstance(adapted, PeftModel)
        return adapted
    add_further(model, config, adapter_name)
    if trainable:
        model.set_requires_grad(adapter_name)
    return model


def _write(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Copies, because tensors that share memory (tied weights) cannot be written.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(copies, file, metadata={"format": "pt", **metadata})


def _write_config(folder: Path, config: Any) -> None:
    config = copy.copy(config)
    config.inference_mode = True
    cached = _find_in_cache(config.base_model_name_or_path or "")
    if cached is not None:
        config.base_model_name_or_path, config.revision = cached
    if isinstance(config.target_modules, set):
        # PEFT writes a set in an order of its own in every process.
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def _find_in_cache(path: str) -> tuple[str, str] | None:
    """Return (name on the Hub, commit) of a folder in the Hub's cache, which is found by them again; else None."""
    snapshots = Path(path).absolute().parent
    if snapshots.name != "snapshots" or snapshots.parent.parent != Path(constants.HF_HUB_CACHE).absolute():
        return None
    return snapshots.parent.name.removeprefix("models--").replace("--", "/"), Path(path).name


def _plain(name: str) -> str:
    """Return the name that something had before adapters were wrapped around it."""
    return name.replace(".base_layer.", ".")


def _read_biases(base: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    stored, present = read_router_biases(folder), router_biases(base)
    for name, bias in stored.items():
        if name not in present or present[name].shape != bias.shape:
            raise AdapterError(f"{folder / BIAS_FILE}: {name} is not in this model, or of another size")
    return stored


def _misfits(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Return what is missing, unknown or of another shape, the first ten of it; empty where all fits."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in the model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "; ".join([*sorted(problems)[:MAX_LISTED], *more])
