"""What `config.json` must say for engines other than transformers, and what it must not say any more.

Each key was seen to matter: without `scoring_func` llama.cpp and vLLM score experts by softmax, without `topk_method`
vLLM does not know the router's bias, SGLang wants `moe_layer_freq`, Ollama reads rope from the old keys.
"""

from typing import Any

from seeklet.modeling.checkpoint_names import true_mtp_depth
from seeklet.modeling.safetensors_io import DTYPES

from .contents import CODE
from .findings import Finding, error, warning
from .shards import Shards

FILE = "config.json"
_ROUTED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
_FP8 = ("F8_E4M3", "F8_E5M2")


def check_keys(config: dict[str, Any], shards: Shards, with_code: bool = False) -> list[Finding]:
    """Return what engines would miss in `config`, and what is left over from another checkpoint."""
    found = [*_check_stale(config, shards, with_code), *_check_rope(config)]
    if not config.get("architectures"):
        wrong = "is missing, and engines choose the model's class by it"
        found.append(error(FILE, "architectures", wrong, "save the model with save_pretrained"))
    if config.get("model_type") == "deepseek_v3":
        found += _check_deepseek(config, shards)
    return found


def mend_keys(config: dict[str, Any], shards: Shards, with_code: bool = False) -> dict[str, Any]:
    """Return `config` with all that `check_keys` calls fixable."""
    mended = dict(config)
    for name in [finding.where for finding in check_keys(config, shards, with_code) if finding.fixable]:
        if name in ("quantization_config", "auto_map"):
            del mended[name]
        elif name == "rope_theta":
            mended[name] = config["rope_parameters"]["rope_theta"]
        elif name == "rope_scaling":
            mended[name] = _old_scaling(config)
        elif name == "num_nextn_predict_layers":
            mended[name] = _mtp_depth(config, shards)
        elif name in _ROUTED:
            mended[name] = _ROUTED[name]
    return mended


def _check_stale(config: dict[str, Any], shards: Shards, with_code: bool) -> list[Finding]:
    found = []
    is_fp8 = any(tensor.dtype in _FP8 for tensor in shards.tensors.values())
    quantization = config.get("quantization_config")
    if quantization is None and is_fp8:
        name = next(name for name, tensor in shards.tensors.items() if tensor.dtype in _FP8)
        wrong = f"is missing, and {name} is fp8"
        found.append(error(FILE, "quantization_config", wrong, "save with save_pretrained(block_fp8=True)"))
    elif isinstance(quantization, dict) and quantization.get("quant_method") == "fp8" and not is_fp8 and shards.tensors:
        dtype = _dtype_of(shards)
        wrong = f"says fp8, and the weights are {dtype}: it is of the checkpoint they were loaded from"
        found.append(error(FILE, "quantization_config", wrong, "delete it", fixable=True))
    if "auto_map" in config:
        modules = {str(value).partition(".")[0].rpartition("--")[2] for value in _values(config["auto_map"])}
        if not (with_code and modules == {CODE.removesuffix(".py")}):
            wrong = f"names code ({', '.join(sorted(modules))}) that is not published, and loading asks for it"
            found.append(error(FILE, "auto_map", wrong, "delete it", fixable=True))
    return found


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _dtype_of(shards: Shards) -> str:
    return str(DTYPES[next(iter(shards.tensors.values())).dtype])[6:]


def _check_rope(config: dict[str, Any]) -> list[Finding]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return []
    level = error if config.get("model_type") == "deepseek_v3" else warning
    found = []
    if config.get("rope_theta") != rope["rope_theta"]:
        wrong = (
            f"is {config.get('rope_theta', 'missing')}, and rope_parameters say {rope['rope_theta']}; Ollama reads it"
        )
        found.append(level(FILE, "rope_theta", wrong, f"set it to {rope['rope_theta']}", fixable=True))
    scaling = _old_scaling(config)
    if scaling is not None and _without_type(config.get("rope_scaling")) != _without_type(scaling):
        wrong = "does not say what rope_parameters do; Ollama and older engines read it"
        found.append(level(FILE, "rope_scaling", wrong, "write the same there", fixable=True))
    return found


def _old_scaling(config: dict[str, Any]) -> dict[str, Any] | None:
    rope = config["rope_parameters"]
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    return {name: value for name, value in rope.items() if name != "rope_theta"} | {"type": kind}


def _without_type(scaling: Any) -> Any:
    if not isinstance(scaling, dict):
        return scaling
    kind = scaling.get("rope_type", scaling.get("type"))
    return {name: value for name, value in scaling.items() if name not in ("type", "rope_type", "rope_theta")} | {
        "rope_type": kind
    }


def _check_deepseek(config: dict[str, Any], shards: Shards) -> list[Finding]:
    biases = [name for name in shards.tensors if name.endswith("e_score_correction_bias")]
    needed = _ROUTED if biases else {"moe_layer_freq": 1}
    found = [
        error(FILE, name, f"is missing; engines take another than {value!r}", f"set it to {value!r}", fixable=True)
        for name, value in needed.items()
        if config.get(name) is None
    ]
    said, depth = config.get("num_nextn_predict_layers"), _mtp_depth(config, shards)
    if shards.tensors and said != depth:
        layer = f"model.layers.{config.get('num_hidden_layers')}"
        wrong = f"is {'missing' if said is None else said}, and the weights have {depth} such layers ({layer}…)"
        found.append(error(FILE, "num_nextn_predict_layers", wrong, f"set it to {depth}", fixable=True))
    return found


def _mtp_depth(config: dict[str, Any], shards: Shards) -> int:
    said, layers = config.get("num_nextn_predict_layers"), config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return said or 0
    return true_mtp_depth(shards.tensors, layers, said if isinstance(said, int) else 0)
