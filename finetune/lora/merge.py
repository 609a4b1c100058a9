"""Merging: base model plus adapter, written as a whole checkpoint that needs neither PEFT nor seeklet."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.atomic_directory import replaced_directory
from seeklet.modeling.checkpoint_rewrite import rewrite_checkpoint

from ..errors import AdapterError
from ..hub_reach import is_cache_all, say_not_found
from ..limits import MAX_SHARD_GB
from .deltas import changes
from .files import load_adapter, read_config, read_router_biases, read_tensors

# What a model is served with beside its weights. The files of a tokenizer belong together.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
OTHER_FILES = ("chat_template.jinja", "generation_config.json")
# Of a tokenizer that is Python code, as Moonlight's and Kimi's: the code and what it reads.
TOKENIZER_CODE = ("tokenization*.py", "tiktoken.model")
WHOLE_MODEL = ("*.safetensors", "*.json", *TOKENIZER_FILES, *OTHER_FILES, *TOKENIZER_CODE)
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    fp8: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    max_shard_gb: float = MAX_SHARD_GB,
) -> None:
    """Write the base model of `adapter`, merged with it, to the directory `out`.

    A DeepSeek-V3 checkpoint is read, changed and written one tensor at a time, in the published format, with the
    router biases saved beside the adapter; other models are loaded whole. Tokenizer, chat template and generation
    config come from the adapter's folder where it has them, else from the base. Until all is written, `out` is as it
    was.

    Args:
        adapter: a folder.
        out: where to.
        base: the model the adapter was trained on, a folder or a name on the Hub; default: what the adapter says.
        dtype: of the weights; default: that of the base, and bfloat16 for a block-fp8 one.
        fp8: write block-fp8 weights; for a DeepSeek-V3 checkpoint only.
        overwrite: replace a model that is in `out`.
        revision: of `base`, where that is on the Hub; default: what the adapter says.
        max_shard_gb: the largest file of the weights.

    Raises:
        AdapterError: the adapter does not fit its base, or `out` cannot be written to as asked.
        CheckpointError: the base's checkpoint is broken.
        OSError: writing fails.
    """
    adapter, out = Path(adapter), Path(out)
    config = read_config(adapter)
    source = find_base(base or config.base_model_name_or_path, revision or config.revision, adapter)
    check_out(out, (adapter, source), overwrite)
    try:
        base_config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(f"{source / CONFIG_NAME}: no model that can be merged: {reason}") from None
    streams = isinstance(base_config, SeekletConfig) and (source / CONFIG_NAME).is_file()
    if fp8 and not streams:
        raise AdapterError(f"fp8 is for DeepSeek-V3 checkpoints; {source} is a {base_config.model_type}")
    max_shard_size = round(max_shard_gb * 10**9)
    with replaced_directory(out, lambda name: name.endswith(WEIGHTS), CONFIG_NAME) as staging:
        if streams:
            rewrite_checkpoint(
                SeekletForCausalLM,
                source,
                staging,
                _changes(adapter, base_config),
                dtype=dtype,
                block_fp8=fp8,
                max_shard_size=max_shard_size,
            )
        else:
            _merge_in_memory(adapter, source, staging, dtype, max_shard_size)
        _copy_files(adapter, source, staging)


def find_base(
    base: str | Path | None, revision: str | None, adapter: Path, patterns: Sequence[str] = WHOLE_MODEL
) -> Path:
    """Return the folder of the base model; of one on the Hub, files of these names are downloaded.

    Raises:
        AdapterError: there is none, or the adapter does not say which.
    """
    if base is None:
        raise AdapterError(f"{adapter} does not say which model it was trained on; name it with --base")
    folder = Path(base)
    if folder.is_dir():
        return folder
    try:
        path = snapshot_download(
            str(base), revision=revision, allow_patterns=list(patterns), local_files_only=is_cache_all(str(base))
        )
    except (OSError, ValueError) as error:
        reason = say_not_found(str(base), error)
        raise AdapterError(
            f"{base}, the base of {adapter}, is no folder here and not on the Hub; name it with --base ({reason})"
        ) from None
    return Path(path)


def _changes(adapter: Path, base: PreTrainedConfig) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    made = changes(read_config(adapter), read_tensors(adapter), base.n_routed_experts)
    for name, bias in read_router_biases(adapter).items():
        made[name] = lambda _, bias=bias: bias
    return made


def _merge_in_memory(adapter: Path, source: Path, target: Path, dtype: torch.dtype | None, max_shard_size: int) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto")
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise AdapterError(f"{source}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    merged = load_adapter(model, adapter).merge_and_unload()
    merged.save_pretrained(target, max_shard_size=max_shard_size)


def _copy_files(adapter: Path, source: Path, target: Path) -> None:
    tokenizer = adapter if any((adapter / name).is_file() for name in TOKENIZER_FILES) else source
    wanted = [(name, tokenizer) for name in TOKENIZER_FILES]
    wanted += [(name, adapter if (adapter / name).is_file() else source) for name in OTHER_FILES]
    for name, folder in wanted:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    if _has_code(target / "tokenizer_config.json"):
        for folder in (source, tokenizer):
            for file in (file for pattern in TOKENIZER_CODE for file in folder.glob(pattern)):
                shutil.copyfile(file, target / file.name)


def _has_code(tokenizer_config: Path) -> bool:
    try:
        return "auto_map" in json.loads(tokenizer_config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    """Check that what is made of `sources` may be written to the folder `out`.

    Raises:
        AdapterError: it may not.
    """
    if any(out.resolve() == source.resolve() for source in sources):
        raise AdapterError(f"{out} is what is read; allowed: another folder")
    if out.is_file():
        raise AdapterError(f"{out} is a file; allowed: a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise AdapterError(f"{out} is not empty; allowed: a new folder, or --overwrite")
