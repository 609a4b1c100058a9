"""The model before training, and what training made of it."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME as MODEL_CONFIG

from ..errors import RecipeError
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
            os.path.expanduser(path), revision=revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: {path}: {str(error).strip().splitlines()[0]}") from error


def load_model(settings: ModelSettings, trained: Path | None = None) -> PreTrainedModel:
    """Return the recipe's model, or the whole trained model in a folder, as training loads it; on the GPUs there are.

    Raises:
        RecipeError: it cannot be loaded.
        CheckpointError: its files are damaged.
    """
    if trained:
        settings = replace(settings, path=str(trained), revision=None, fp8="dequantize")
    if torch.cuda.is_available():
        settings = replace(settings, device_map="auto")
    return load_for_training(settings).eval()
