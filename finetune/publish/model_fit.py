"""Whether the tensors of a checkpoint are those of its config: names, shapes and dtypes, without reading a weight."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.checkpoint_load import rules_of
from seeklet.modeling.checkpoint_names import true_mtp_depth
from seeklet.modeling.checkpoint_plan import make_plan
from seeklet.modeling.safetensors_io import DTYPES

from .findings import Finding, error
from .shards import Shards

_MEND = "save the model and its config together, with save_pretrained"
_FP8_ONLY = ("F8_E4M3", "F8_E5M2", "F8_E8M0")
# What stays in fp32 beside weights in bf16, as DeepSeek publishes it.
_FP32 = re.compile(r"e_score_correction_bias$|_scale_inv$|\.gate\.weight$")


def build_on_meta(folder: Path) -> tuple[PreTrainedModel | None, list[Finding]]:
    """Return the model that the config of `folder` describes, without weights, or why there is none."""
    try:
        config = AutoConfig.from_pretrained(folder)
        for name in ("quantization_config", "auto_map"):
            if hasattr(config, name):
                delattr(config, name)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config), []
    # What a config can hold is without end, and so is what the classes raise on it.
    except Exception as problem:
        said = " ".join(str(problem).replace(f"{folder}/", "").split())[:300] or type(problem).__name__
        where = said.split()[0] if type(problem).__name__ == "ConfigError" else ""
        return None, [error("config.json", where, f"no causal language model can be made of it: {said}", _MEND)]


def check_fit(model: PreTrainedModel, shards: Shards) -> list[Finding]:
    """Return what of the weights does not fit the config."""
    if isinstance(model, SeekletPreTrainedModel):
        return [*_check_seeklet(model, shards), *_check_dtypes(model.config, shards)]
    return [*_check_stock(model, shards), *_check_dtypes(model.config, shards)]


def _check_seeklet(model: SeekletPreTrainedModel, shards: Shards) -> list[Finding]:
    config = model.config
    depth = true_mtp_depth(shards.tensors, config.num_hidden_layers, config.num_nextn_predict_layers)
    if depth != config.num_nextn_predict_layers:
        config.num_nextn_predict_layers = depth
        with torch.device("meta"):
            model = type(model)(config)
    _, problems = make_plan(model.state_dict(), shards.tensors, rules_of(model, False, True))
    found = []
    for problem in problems:
        file = Path(problem.file).name if problem.file else _file_of(problem.subject, shards)
        found.append(error(file, problem.subject, f"found {problem.found}, expected {problem.expected}", _MEND))
    return found


def _check_stock(model: PreTrainedModel, shards: Shards) -> list[Finding]:
    expected: Mapping[str, torch.Tensor] = revert_weight_conversion(model, model.state_dict())
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]
    optional = [*(model._keys_to_ignore_on_load_missing or ())]
    found = []
    for name, tensor in expected.items():
        stored, shape = shards.tensors.get(name), tuple(tensor.shape)
        if stored is None:
            if name not in tied and not _matches(name, optional):
                found.append(error(_file_of(name, shards), name, f"is missing; expected {shape}", _MEND))
        elif stored.shape != shape:
            wrong = f"has shape {stored.shape}, and the config makes it {shape}"
            found.append(error(Path(stored.file).name, name, wrong, _MEND))
    if tied and not tied & shards.tensors.keys():
        name = sorted(tied & expected.keys())[0]
        found.append(error(_file_of(name, shards), name, "is missing, and so is what it shares", _MEND))
    for name in sorted(shards.tensors.keys() - expected.keys()):
        if name not in tied and not _matches(name, ignored):
            found.append(error(_file_of(name, shards), name, "is there, but nothing of the model is called so", _MEND))
    return found


def _check_dtypes(config: PreTrainedConfig, shards: Shards) -> list[Finding]:
    said = getattr(config, "dtype", None)
    dtype = getattr(torch, said) if isinstance(said, str) else said
    found: dict[str, Finding] = {}
    for name, tensor in shards.tensors.items():
        file, own = Path(tensor.file).name, DTYPES[tensor.dtype]
        if tensor.dtype in _FP8_ONLY:
            if f"{name}_scale_inv" not in shards.tensors and not name.endswith("_scale_inv"):
                found.setdefault("scale", error(file, name, "is fp8 without its weight_scale_inv", _MEND))
        elif dtype is not None and own.is_floating_point and own != dtype and not _may_be_fp32(name, own):
            wrong = f"is {str(own)[6:]}, and the config says {str(dtype)[6:]}"
            found.setdefault(tensor.dtype, error(file, name, wrong, f'set "dtype" to "{str(own)[6:]}", or cast it'))
    return list(found.values())


def _may_be_fp32(name: str, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and (_FP32.search(name) is not None or "norm" in name)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _file_of(name: str, shards: Shards) -> str:
    stored = shards.tensors.get(name)
    if stored is not None:
        return Path(stored.file).name
    return shards.files[0].name if len(shards.files) == 1 else "model.safetensors.index.json"
