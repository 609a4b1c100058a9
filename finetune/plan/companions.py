"""Frozen models beside the one that is trained: GRPO's reference, and the teacher of on-policy distillation."""

from dataclasses import dataclass

from ..errors import RecipeError
from ..memory import count_bytes
from ..recipe import DistillRecipe, GrpoRecipe
from .counts import count_flops
from .model_config import build_on_meta, find_config, held_dtype
from .request import Request, setting

VLLM_SHARE = "vllm_gpu_memory_utilization"


@dataclass(frozen=True)
class Companions:
    """What stands beside the trained model."""

    name: str | None
    """reference or teacher."""
    weights: int
    """Bytes of all of it; the same layout as the trained model's shares them out."""
    flops_per_token: float
    """Of its forward pass, and of the policy's own ones that are not trained on."""


def find_companions(request: Request) -> Companions:
    """Return what a recipe keeps beside its model.

    TRL's GRPO loads a reference when `beta` is not 0, but with an adapter, which it switches off instead; either way it
    costs a forward pass.

    Raises:
        RecipeError: there is no config of the teacher.
    """
    if "companions" not in request.built:
        request.built["companions"] = _find(request)
    return request.built["companions"]


def sampler_share(request: Request) -> float:
    """Return the share of each GPU's memory that a vLLM in the same processes takes for itself, weights and cache."""
    if not setting(request.recipe, "use_vllm", False) or setting(request.recipe, "vllm_mode", "") != "colocate":
        return 0.0
    return float(setting(request.recipe, VLLM_SHARE, 0.3))


def _find(request: Request) -> Companions:
    recipe = request.recipe
    if isinstance(recipe, GrpoRecipe) and setting(recipe, "beta", 0.0):
        bare = request.build_bare()
        weights = 0 if request.adapts else count_bytes([*bare.parameters(), *bare.buffers()])
        return Companions("reference", weights, count_flops(bare, request.tokens, with_mtp=False).forward)
    if isinstance(recipe, DistillRecipe):
        try:
            config = find_config(recipe.teacher)
        except RecipeError as error:
            raise RecipeError(str(error).replace("model.path", "teacher.path", 1)) from error
        teacher = build_on_meta(
            config,
            held_dtype(config, recipe.teacher),
            recipe.teacher.fp8 == "keep",
            recipe.teacher.quantization,
            recipe.teacher.double_quantization,
        )
        bare = teacher if recipe.teacher.quantization is None else build_on_meta(config, held_dtype(config))
        flops = count_flops(bare, request.tokens, with_mtp=False).forward
        return Companions("teacher", count_bytes([*teacher.parameters(), *teacher.buffers()]), flops)
    return Companions(None, 0, 0.0)
