"""The model before training, and what training made of it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import seeklet.modeling  # noqa: F401  From here on the Auto classes load deepseek_v3 as seeklet's models.

from ..errors import RecipeError
from ..recipe import ModelSettings

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
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
    return _load(AutoTokenizer, settings.tokenizer or settings.path, settings)


def load_model(settings: ModelSettings, trained: Path | None = None) -> PreTrainedModel:
    """Return the recipe's model, or the whole trained model in a folder; on the GPUs there are, else on the CPU.

    Raises:
        RecipeError: it cannot be loaded.
    """
    options: dict[str, Any] = {"dtype": settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)}
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    if settings.fp8 == "keep" and trained is None:
        options["keep_fp8"] = True
    if torch.cuda.is_available():
        options["device_map"] = "auto"
    return _load(AutoModelForCausalLM, str(trained or settings.path), settings, **options).eval()


def _load(loader: Any, path: str, settings: ModelSettings, **options: Any) -> Any:
    revision = settings.revision if path == settings.path else None
    try:
        return loader.from_pretrained(
            str(Path(path).expanduser()) if Path(path).expanduser().exists() else path,
            revision=revision,
            trust_remote_code=settings.trust_remote_code,
            **options,
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: {path}: {str(error).strip().splitlines()[0]}") from error
