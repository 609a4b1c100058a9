"""Packages that a recipe needs where it runs, and that a plan does without."""

from importlib.util import find_spec

from ..quantization import is_of_bitsandbytes
from ..recipe import TrainingRecipe

_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")


def missing_packages(recipe: TrainingRecipe) -> list[str]:
    """Return a line for each package that the recipe needs and that is not installed here."""
    optimizer, attention = str(recipe.trainer.get("optim", "")), recipe.model.attn_implementation or ""
    needed = (
        (recipe.trainer.get("use_vllm") is True, "trainer.use_vllm: true", "vllm", "trl[vllm]"),
        (is_of_bitsandbytes(optimizer), f"trainer.optim: {optimizer}", "bitsandbytes", "seeklet[quantization]"),
        (optimizer in _TORCHAO, f"trainer.optim: {optimizer}", "torchao", "torchao"),
        (
            recipe.model.quantization is not None,
            f"model.quantization: {recipe.model.quantization}",
            "bitsandbytes",
            "seeklet[quantization]",
        ),
        (
            attention.startswith("flash_attention"),
            f"model.attn_implementation: {attention}",
            "flash_attn",
            "flash-attn",
        ),
    )
    return [
        f"{what} needs {package}, which is not installed here: pip install '{install}'"
        for is_needed, what, package, install in needed
        if is_needed and find_spec(package) is None
    ]
