"""What a recipe asks of a cluster, in the numbers that memory and speed depend on; no data and no weights are read."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from trl import DistillationConfig, GRPOConfig, SFTConfig

from seeklet.modeling import SeekletConfig

from ..errors import RecipeError
from ..lora.attach import attach
from ..losses import use_head_loss
from ..memory import OPTIMIZER_STATES
from ..recipe import DistillRecipe, GrpoRecipe, TrainingRecipe, read_recipe
from ..recipe.fields import strip_places
from ..recipe.stages import STAGES
from ..recipe.yaml_text import Problems, Setting, apply_overrides, read_recipe_file
from ..training_model import freeze_unreached, mtp_mode, set_losses
from .cluster import Cluster
from .deepening import deepen, one_of_each
from .model_config import build_on_meta, find_config, held_dtype

Layout = Literal["single", "layers", "fsdp", "ddp"]
LAYOUTS = {
    "single": "one GPU",
    "layers": "one process, its layers laid out over the GPUs, which work one after another",
    "fsdp": "every GPU holds a part of each layer, gathered when it is needed (FSDP2, ZeRO-3)",
    "ddp": "every GPU holds the whole model",
}
_CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "distill-topk": SFTConfig,
    "grpo": GRPOConfig,
    "distill": DistillationConfig,
}
_NOT_TRAINED = [name for name, kind in STAGES.items() if not issubclass(kind, TrainingRecipe)]


class _Everything(Collection[str]):
    """Contains any name: a plan needs none of a recipe's files."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A recipe in numbers."""

    recipe: TrainingRecipe
    config: PreTrainedConfig
    layout: Layout
    micro_batch: int
    """Sequences that one process passes at a time."""
    tokens: int
    """Of the longest sequence."""
    accumulation: int
    checkpointing: bool
    optimizer: str
    compute_dtype: torch.dtype
    keep_fp8: bool
    expert_parallel: int = 1
    offload: bool = False
    """Whether weights, gradients and optimizer wait in the host's memory (FSDP)."""
    built: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Models that were made; requests made from this one by `with_changes` share them."""

    @property
    def adapts(self) -> bool:
        """Return whether only an adapter is trained."""
        return self.recipe.adapter is not None

    def build(self, **changed: int) -> PreTrainedModel:
        """Return the model as it is trained, on the meta device, with fields of its config changed.

        The unchanged one is made once.
        """
        if changed:
            return self._build(changed)
        recipe = self.recipe
        made_of = (recipe.model, recipe.adapter, recipe.moe, recipe.stage, self.keep_fp8, self.checkpointing)
        if made_of not in self.built:
            shallow = one_of_each(self.config, recipe.adapter)
            self.built[made_of] = self._build(shallow or {})
            if shallow is not None:
                deepen(self.built[made_of], self.config)
        return self.built[made_of]

    def build_bare(self) -> PreTrainedModel:
        """Return the model as it was before anything was added, quantised or frozen; made once."""
        dtype = held_dtype(self.config, self.recipe.model)
        if ("bare", dtype) not in self.built:
            shallow = one_of_each(self.config)
            self.built["bare", dtype] = build_on_meta(self._config(shallow or {}), dtype)
            if shallow is not None:
                deepen(self.built["bare", dtype], self.config)
        return self.built["bare", dtype]

    def _config(self, changed: Mapping[str, int]) -> PreTrainedConfig:
        fields = self.config.to_dict() | dict(changed)
        # Lists with an entry a layer, which are made anew.
        fields = {name: value for name, value in fields.items() if name not in ("layer_types", "model_type")}
        return type(self.config).from_dict(fields)

    def _build(self, changed: Mapping[str, int]) -> PreTrainedModel:
        config = self._config(changed)
        settings = self.recipe.model
        dtype, double = held_dtype(self.config, settings), settings.double_quantization
        model: Any = build_on_meta(config, dtype, self.keep_fp8, settings.quantization, double)
        model = use_head_loss(model)
        set_losses(model, self.recipe.moe)
        if self.recipe.adapter is not None:
            model = attach(model, self.recipe.adapter)
        freeze_unreached(model, self.recipe.moe, self.recipe.stage)
        if self.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    def forward_options(self, model: Any) -> dict[str, Any]:
        """Return the arguments that training passes to the model's forward beside the batch."""
        if not isinstance(self.config, SeekletConfig):
            return {}
        return {"mtp_loss": mtp_mode(model, self.recipe.moe, self.recipe.stage), "return_logits": False}

    def with_changes(self, **changed: Any) -> "Request":
        """Return this with other settings."""
        return replace(self, **changed)


def read_request(
    path: Path,
    overrides: Sequence[str],
    cluster: Cluster,
    layout: Layout | None = None,
    expert_parallel: int | None = None,
    tokens: int | None = None,
) -> Request:
    """Return what the recipe of a file asks of `cluster`; without a number, `expert_parallel` is the recipe's own.

    Raises:
        RecipeError: the recipe is wrong, has no config, or cannot be laid out so; one line says what to change.
    """
    problems = Problems()
    tree = apply_overrides(read_recipe_file(path), overrides, problems)
    _check_stage(tree, problems)
    recipe = read_recipe(tree, problems, TrainingRecipe, _Everything())
    problems.raise_if_any()
    assert recipe is not None
    return make_request(recipe, cluster, layout, expert_parallel, tokens)


def make_request(
    recipe: TrainingRecipe,
    cluster: Cluster,
    layout: Layout | None = None,
    expert_parallel: int | None = None,
    tokens: int | None = None,
) -> Request:
    """Return what a recipe asks of `cluster`; the rest as in `read_request`."""
    config = find_config(recipe.model)
    own = int(recipe.trainer.get("expert_parallel", 1))
    layout, expert_parallel = layout or _usual_layout(recipe, cluster), expert_parallel or own
    _check_layout(recipe, config, cluster, layout, expert_parallel)
    optimizer = str(setting(recipe, "optim"))
    if optimizer not in OPTIMIZER_STATES:
        known = ", ".join(sorted(OPTIMIZER_STATES))
        raise RecipeError(f"trainer.optim is {optimizer}, whose memory nobody has counted; allowed in a plan: {known}")
    held = held_dtype(config, recipe.model)
    keep = recipe.model.fp8 == "keep"
    if keep and getattr(config, "quantization_config", None) is None:
        raise RecipeError(
            f"model.fp8 is keep, but {recipe.model.path} is no block-fp8 checkpoint; set it to dequantize"
        )
    # On a GPU seeklet computes in bf16 and recomputes activations unless it is told otherwise.
    bf16 = recipe.trainer.get("bf16", True)
    return Request(
        recipe=recipe,
        config=config,
        layout=layout,
        micro_batch=int(setting(recipe, "per_device_train_batch_size")),
        tokens=tokens or _longest(recipe),
        accumulation=int(setting(recipe, "gradient_accumulation_steps")),
        checkpointing=bool(recipe.trainer.get("gradient_checkpointing", True)),
        optimizer=optimizer,
        compute_dtype=torch.bfloat16 if bf16 else held,
        keep_fp8=keep,
        expert_parallel=expert_parallel,
    )


def _check_stage(tree: Setting, problems: Problems) -> None:
    given: Any = tree.value
    if "stages" in given:
        stages = strip_places(given["stages"])
        names = f" of {', '.join(stages)}" if isinstance(stages, dict) else ""
        said = f"stages: is a pipeline{names}; a plan is of one training stage: put that in a file of its own"
        problems.add(given["stages"].place, said)
    elif "stage" in given and strip_places(given["stage"]) in _NOT_TRAINED:
        said = f"stage: {strip_places(given['stage'])} trains nothing; allowed in a plan: {', '.join(_CONFIGS)}"
        problems.add(given["stage"].place, said)
    problems.raise_if_any()


def _usual_layout(recipe: TrainingRecipe, cluster: Cluster) -> Layout:
    if cluster.num_gpus == 1:
        return "single"
    if recipe.trainer.get("expert_parallel", 1) > 1:
        return "ddp"
    if recipe.model.device_map:
        return "layers"
    return "ddp" if recipe.model.quantization else "fsdp"


def _check_layout(
    recipe: TrainingRecipe, config: PreTrainedConfig, cluster: Cluster, layout: Layout, expert_parallel: int
) -> None:
    if recipe.model.device_map and layout in ("fsdp", "ddp"):
        raise RecipeError(
            f"model.device_map: auto lays one process out over all GPUs, which --layout {layout} excludes; leave "
            "one of them out"
        )
    if recipe.model.quantization and layout == "fsdp":
        raise RecipeError(
            f"model.quantization is {recipe.model.quantization}, and FSDP does not share out quantised weights; plan "
            "with --layout ddp, or set it to null"
        )
    if layout == "layers" and cluster.nodes > 1:
        raise RecipeError(
            f"model.device_map: auto reaches the GPUs of one node, and here are {cluster.nodes}; set it to null and "
            "start with accelerate's FSDP (--layout fsdp)"
        )
    if layout == "single" and cluster.num_gpus > 1:
        raise RecipeError(f"--layout single is for one GPU, and here are {cluster.num_gpus}; leave one of the two out")
    if expert_parallel == 1:
        return
    experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
    if not experts:
        raise RecipeError(f"--expert-parallel is {expert_parallel}, but {recipe.model.path} has no routed experts")
    if layout not in ("fsdp", "ddp"):
        raise RecipeError(f"--expert-parallel is {expert_parallel}, which --layout {layout} excludes; leave one out")
    divisors = [n for n in range(1, cluster.num_gpus + 1) if not experts % n and not cluster.num_gpus % n]
    if expert_parallel not in divisors:
        raise RecipeError(
            f"--expert-parallel is {expert_parallel} for {experts} experts on {cluster.num_gpus} GPUs; allowed: "
            f"divisors of both, {', '.join(map(str, divisors))}"
        )


def setting(recipe: TrainingRecipe, name: str, other: Any = None) -> Any:
    """Return a setting of the trainer as the recipe, or else TRL, has it; `other` where its stage has no such one."""
    if name in recipe.trainer:
        return recipe.trainer[name]
    field = _CONFIGS[recipe.stage].__dataclass_fields__.get(name)
    if field is None:
        return other
    value = field.default_factory() if callable(field.default_factory) else field.default
    return getattr(value, "value", value)


def _longest(recipe: TrainingRecipe) -> int:
    section: Any = getattr(recipe, "data", None) or getattr(recipe, "prompts", None)
    longest = section.max_tokens or 1024
    if recipe.stage in ("grpo", "distill"):
        longest += int(setting(recipe, "max_completion_length") or 256)
    return longest


def samples_per_process(request: Request) -> int:
    """Return how many samples a process generates at a time; 0 where none are.

    GRPO samples for a whole step at once, distillation for one pass.
    """
    if isinstance(request.recipe, GrpoRecipe):
        return request.micro_batch * request.accumulation
    return request.micro_batch if isinstance(request.recipe, DistillRecipe) else 0
