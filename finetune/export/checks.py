"""All that stands against an export, found before anything is converted."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..publish.engine_keys import check_keys
from ..publish.findings import Finding, error, warning
from ..publish.model_fit import build_on_meta, check_fit
from ..publish.preflight import read_json
from ..publish.served_with import check_generation_config, check_tokenizer, load_tokenizer
from ..publish.shards import Shards, read_shards
from .chat_templates import OllamaTemplate, find_template
from .converter_source import Converter
from .llama_limits import check_limits
from .modelfile import is_quotable
from .own_files import foreign_files
from .weight_types import BYTES, CONVERTED, QUANTIZED, has_quantizer, lossless_type

# Vocabulary and metadata, beside weights: the tokens and merges of DeepSeek-V3 take 5.2 MB.
_METADATA_BYTES = 6_000_000
_CONFIG = "config.json"


@dataclass
class Plan:
    """What would be written, and what stands against it.

    Attributes:
        findings: errors and warnings.
        sizes: bytes of each type's file, estimated.
        lossless: the type that holds the weights as they are, from which quantized ones are made.
        tokenizer: of the model, where it could be loaded.
        template: for Ollama, where one was asked for and found.
    """

    findings: list[Finding]
    sizes: dict[str, int]
    lossless: str
    tokenizer: PreTrainedTokenizerBase | None = None
    template: OllamaTemplate | None = None


def make_plan(
    folder: Path,
    types: Sequence[str],
    converter: Converter | None,
    out: Path,
    names: Sequence[str],
    *,
    ollama: bool,
    system: str | None,
    overwrite: bool,
) -> Plan:
    """Return what an export of the model in `folder` would write into `out`, and all that is wrong with it.

    Args:
        folder: of the model, whole.
        types: what weights are written as.
        converter: llama.cpp's; None where it could not be had, of which the caller tells.
        out: where the files go.
        names: what the files are called.
        ollama: whether there is to be a Modelfile.
        system: the system message asked for.
        overwrite: whether files of others may be replaced.
    """
    shards = read_shards(folder)
    plan = Plan([*_check_packages(types), *shards.findings], *_sizes(shards, types, _layers(folder)))
    found = plan.findings
    try:
        config = read_json(folder / _CONFIG)
    except (ValueError, OSError) as problem:
        found.append(error(_CONFIG, "", f"cannot be read: {problem}", "name the folder that save_pretrained wrote"))
        return plan
    found += _check_model(folder, config, shards, converter)
    plan.tokenizer, problems = load_tokenizer(folder)
    found += problems
    if plan.tokenizer is not None:
        found += check_tokenizer(plan.tokenizer, config, shards)
        found += _check_vocabulary(folder, plan.tokenizer, converter)
        if ollama:
            plan.template = find_template(plan.tokenizer)
            found += _check_template(plan.tokenizer, plan.template)
    if system is not None and not is_quotable(system):
        wrong = 'holds """ or ends with ", which a Modelfile cannot say'
        found.append(error("Modelfile", "--system", wrong, "leave the quotation marks out"))
    found += _check_place(out, plan, types)
    if not overwrite:
        found += [
            error(str(out / name), "", "is not as an export left it", "move it away, or replace it with --overwrite")
            for name in foreign_files(out, names)
        ]
    plan.findings = sorted(dict.fromkeys(found), key=lambda finding: finding.level != "error")
    return plan


def _check_packages(types: Sequence[str]) -> list[Finding]:
    found = [
        error("gguf", "", f"the package {name} is not installed", "pip install 'seeklet[gguf]'")
        for name in ("gguf", "sentencepiece")
        if find_spec(name) is None
    ]
    asked = [kind for kind in types if kind in QUANTIZED]
    if asked and not has_quantizer():
        wrong = "is written by llama.cpp's quantizer, which is not installed"
        mend = f"pip install llama-cpp-python, which is compiled, or take one of {', '.join(CONVERTED)}"
        found.append(error("--gguf", ", ".join(asked), wrong, mend))
    return found


def _check_model(folder: Path, config: dict[str, Any], shards: Shards, converter: Converter | None) -> list[Finding]:
    found = [*check_keys(config, shards), *check_limits(config)]
    if not shards.tensors and not shards.findings:
        mend = "save the model with save_pretrained, which writes safetensors"
        found.append(error("model.safetensors", "", "there are no weights in this folder", mend))
    model, problems = build_on_meta(folder)
    found += problems
    if model is not None and shards.tensors and not shards.findings:
        found += check_fit(model, shards)
    found += check_generation_config(folder, config)
    architecture = next(iter(config.get("architectures") or []), None)
    if converter is not None and architecture and architecture not in converter.architectures:
        wrong = f"is {architecture}, which llama.cpp does not know ({len(converter.architectures)} others it does)"
        found.append(error(_CONFIG, "architectures", wrong, "serve it with transformers or vLLM instead"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    if converter is not None and method is not None and method not in converter.quantizations:
        wrong = f"says {method}, which the converter cannot expand"
        found.append(error(_CONFIG, "quantization_config", wrong, "save the model dequantised: model.dequantize()"))
    layers, depth = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers")
    if depth and config.get("model_type") == "deepseek_v3":
        wrong = (
            f"is {depth}: llama.cpp has no multi-token prediction for DeepSeek-V3, and layers from {layers} stay behind"
        )
        found.append(warning(_CONFIG, "num_nextn_predict_layers", wrong, "nothing to do; answers are the same"))
    return found


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, converter: Converter | None) -> list[Finding]:
    """Return whether llama.cpp has rules for a byte-level tokenizer; it tells them apart by the tokens of one text."""
    if converter is None or (folder / "tokenizer.model").is_file() or not _is_byte_level(folder):
        return []
    tokens = str(tokenizer.encode(converter.probe))
    if sha256(tokens.encode()).hexdigest() in converter.known_hashes:
        return []
    wrong = (
        "is a byte-level tokenizer of its own, for which llama.cpp has no rules: it would split texts in other places"
    )
    mend = "only a model with a published tokenizer, unchanged, can be GGUF; serve this one with transformers or vLLM"
    return [error("tokenizer.json", "pre_tokenizer", wrong, mend)]


def _is_byte_level(folder: Path) -> bool:
    try:
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return values["model"].get("type") == "BPE" and not values["model"].get("byte_fallback")


def _check_template(tokenizer: PreTrainedTokenizerBase, template: OllamaTemplate | None) -> list[Finding]:
    if template is not None:
        return []
    has_one = bool(tokenizer.chat_template)
    wrong = "is none that seeklet has a Go template for" if has_one else "is missing, and Ollama chats by it"
    mend = (
        "leave --ollama out: `llama-server -m FILE --jinja` takes this one from the GGUF file; or write TEMPLATE "
        "yourself (docs.ollama.com/template)"
        if has_one
        else "copy the base's, or leave --ollama out"
    )
    return [error("chat_template.jinja", "", wrong, mend)]


def _check_place(out: Path, plan: Plan, types: Sequence[str]) -> list[Finding]:
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        return [error(str(out), "", f"{there} is a file", "name a folder: --out DIR")]
    needed = sum(plan.sizes.values())
    if any(kind in QUANTIZED for kind in types) and plan.lossless not in types:
        needed += plan.sizes.get(plan.lossless) or round(plan.sizes[types[0]] / BYTES[types[0]] * BYTES[plan.lossless])
    free = shutil.disk_usage(there).free
    if needed <= free:
        return []
    wrong = f"has {free / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB are written"
    return [error(str(there), "", wrong, "free some, or name another disk: --out DIR")]


def _sizes(shards: Shards, types: Sequence[str], num_layers: int | None) -> tuple[dict[str, int], str]:
    """Return about how large each file becomes, and the type that loses nothing; MTP layers are not written."""
    counts: Counter[str] = Counter()
    for name, tensor in shards.tensors.items():
        parts = name.split(".")
        is_mtp = num_layers is not None and parts[:2] == ["model", "layers"] and int(parts[2]) >= num_layers
        if not is_mtp and not name.endswith("_scale_inv"):
            counts[tensor.dtype] += math.prod(tensor.shape)
    num_weights = sum(counts.values())
    most = counts.most_common(1)
    return {kind: round(num_weights * BYTES[kind]) + _METADATA_BYTES for kind in types}, lossless_type(
        most[0][0] if most else "BF16"
    )


def _layers(folder: Path) -> int | None:
    try:
        config = read_json(folder / _CONFIG)
    except (ValueError, OSError):
        return None
    layers = config.get("num_hidden_layers")
    return layers if config.get("model_type") == "deepseek_v3" and isinstance(layers, int) else None
