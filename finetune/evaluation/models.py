"""The model before training, and what training made of it."""

from pathlib import Path

from ..errors import RecipeError

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
