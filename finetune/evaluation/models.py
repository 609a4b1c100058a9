"""The model before training, and what training made of it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME as MODEL_CONFIG

from ..errors import RecipeError
from ..hub_reach import is_cache_all, say_not_found
from ..lora.files import load_adapter, read_config
from ..lora.merge import TOKENIZER_FILES
from ..recipe import ModelSettings
from ..training_model import load_for_training

# Where `seeklet train` leaves what it trained, in the recipe's output.dir.
TRAINED = ("adapter", "model", "merged")


def find_trained(output: Path) -> Path:
    """Return the folder in `output` that holds the trained adapter or model.

    Raises:
        RecipeError: there is none.
    """
    for folder in (output / name for name in TRAINED):
        if is_adapter(folder) or is_model(folder):
            return folder
    raise RecipeError(
        f"output.dir: {output} holds nothing trained (no {', '.join(TRAINED)}); run seeklet train first, name a folder "
        "with --after, or measure the model before training alone with --before-only"
    )


def is_adapter(folder: Path) -> bool:
    """Return whether `folder` holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_model(folder: Path) -> bool:
    """Return whether `folder` holds a whole model."""
    return (folder / MODEL_CONFIG).is_file()


def check_trained(folder: Path) -> None:
    """Check that `folder` holds an adapter or a model.

    Raises:
        RecipeError: it does not.
    """
    if not is_adapter(folder) and not is_model(folder):
        raise RecipeError(f"{folder} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}: not an adapter, and no model")


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the recipe's model.

    Raises:
        RecipeError: there is none.
    """
    path = settings.tokenizer or settings.path
    revision = None if settings.tokenizer else settings.revision
    try:
        return AutoTokenizer.from_pretrained(
            os.path.expanduser(path),
            revision=revision,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=is_cache_all(path),
        )
    except (OSError, ValueError) as error:
        key = "tokenizer" if settings.tokenizer else "path"
        raise RecipeError(f"model.{key}: {path}: {say_not_found(path, error)}") from error


def load_model(settings: ModelSettings, trained: Path | None = None) -> PreTrainedModel:
    """Return the recipe's model, or the whole trained model in a folder, as training loads it; on the GPUs there are.

    Raises:
        RecipeError: it cannot be loaded.
        CheckpointError: its files are damaged.
    """
    if trained:
        settings = replace(settings, path=str(trained), revision=None, fp8="dequantize", quantization=None)
    several = num_processes() > 1
    if torch.cuda.is_available() and not several:
        settings = replace(settings, device_map="auto")
    model = load_for_training(settings).eval()
    if torch.cuda.is_available() and several:
        # A whole model for each, on a GPU of its own.
        model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))  # pyright: ignore[reportArgumentType]
    return model


class Weights(NamedTuple):
    """Where weights are: a model, and an adapter on it or None."""

    model: ModelSettings
    adapter: Path | None


def find_weights(settings: ModelSettings) -> Weights:
    """Return where the weights of the recipe's model are; `model.path` may be the folder of an adapter.

    The adapter's tokenizer is taken where its folder has one: its chat template is what it was trained with.

    Raises:
        RecipeError: the adapter's base model is not there.
        AdapterError: the adapter cannot be read.
    """
    folder = Path(settings.path).expanduser()
    if not is_adapter(folder):
        return Weights(settings, None)
    config = read_config(folder)
    base = config.base_model_name_or_path
    if base is None:
        raise RecipeError(f"model.path: {folder} does not say which model it was trained on ({ADAPTER_CONFIG})")
    if Path(base).is_absolute() and not is_model(Path(base)):
        raise RecipeError(f"model.path: {folder} was trained on {base}, and that is not there")
    own = str(folder) if has_tokenizer(folder) else None
    found = replace(settings, path=base, revision=config.revision, tokenizer=settings.tokenizer or own)
    return Weights(found, folder)


def load_weights(weights: Weights) -> Any:
    """Return the model, with its adapter where there is one; on the GPUs there are.

    Raises:
        RecipeError: the model cannot be loaded.
        CheckpointError: its files are damaged.
        AdapterError: the adapter does not fit it.
    """
    model = load_model(weights.model)
    return model if weights.adapter is None else load_adapter(model, weights.adapter).eval()


def has_tokenizer(folder: Path) -> bool:
    """Return whether `folder` holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def num_processes() -> int:
    """Return how many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_one_process() -> None:
    """Check that this process is the only one.

    Raises:
        RecipeError: it is not.
    """
    if (processes := num_processes()) > 1:
        raise RecipeError(
            f"evaluation runs in one process, on all GPUs there are, and was started in {processes}: use seeklet "
            "evaluate, not accelerate launch"
        )
