"""What a stage reads: files of the user's by content, products of earlier stages by their recorded hash."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe import StageRecipe
from ..recipe.checks import HUB_DATA
from .hashes import hash_file, hash_model
from .settings import Stage

Inputs = dict[str, dict[str, Any]]
_SETS = (("data", "train"), ("data", "validation"), ("prompts", "train"), ("prompts", "validation"))


def list_inputs(recipe: StageRecipe) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, name) of all data and models that a recipe reads; names on the Hub among them."""
    for key in ("model", "teacher"):
        if (model := getattr(recipe, key, None)) is not None:
            yield f"{key}.path", model.path
            if model.tokenizer is not None:
                yield f"{key}.tokenizer", model.tokenizer
    for section, key in (*_SETS, ("sampling", "evaluation_sets")):
        names = getattr(getattr(recipe, section, None), key, ())
        if isinstance(names, tuple):
            yield from ((f"{section}.{key}[{index}]", name) for index, name in enumerate(names))
    for section in ("data", "prompts", "sampling", "evaluation"):
        template = getattr(getattr(recipe, section, None), "chat_template", None)
        if template is not None and template.endswith(".jinja"):
            yield f"{section}.chat_template", template


def hash_inputs(stage: Stage, products: Mapping[str, str], known: Inputs | None = None) -> Inputs:
    """Return by dotted key what the stage reads, with a SHA-256; what is on the Hub has none.

    `products` has the hashes of earlier stages' products by the stage's name; `known` is what an earlier run found.

    Raises:
        RecipeError: a file cannot be read.
    """
    inputs: Inputs = {}
    for key, name in list_inputs(stage.recipe):
        # One name stands for a list of one.
        referred = stage.references.get(key) or stage.references.get(key.removesuffix("[0]"))
        if referred is not None:
            inputs[key] = {"stage": referred, "sha256": products[referred]}
        else:
            inputs[key] = {"name": name, **_hash(key, name, (known or {}).get(key))}
    return inputs


def _hash(key: str, name: str, known: Mapping[str, Any] | None) -> dict[str, Any]:
    path = Path(name).expanduser()
    try:
        if name.startswith(HUB_DATA) or not path.exists():
            return {}
        return {"sha256": hash_model(path)} if path.is_dir() else hash_file(path, known)
    except OSError as error:
        raise RecipeError(f"{key}: {name}: {error.strerror or error}") from None


def changed_input(before: Inputs, now: Inputs) -> str | None:
    """Return the key of the first input that is not what it was, or None."""
    keys = [*before, *(key for key in now if key not in before)]
    return next((key for key in keys if _sha256(before, key) != _sha256(now, key)), None)


def _sha256(inputs: Inputs, key: str) -> Any:
    return inputs.get(key, {}).get("sha256", "none")
