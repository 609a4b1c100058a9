"""The model as it is trained: loaded, its losses set, its adapter attached, and what no loss reaches frozen."""

from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from pyarrow.compute import max as max_of  # pyright: ignore[reportAttributeAccessIssue]
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.expert_slices import ExpertSlice, whole_sizes

from .balance import moe_layer_indices
from .errors import RecipeError
from .hub_reach import is_cache_all, say_not_found
from .inner_model import find_inside
from .lora.attach import attach
from .losses import use_head_loss
from .meta_model import load_config
from .quantization import check_optimizer, quantized_by
from .recipe import ModelSettings, MoeSettings, RolloutSettings, TrainingRecipe

MtpLoss = Literal["off", "detached", "full"]
# Stages whose texts are given: they have labels, and multi-token prediction learns from them as the model does.
ON_TEXTS = ("sft", "distill-topk")
# Settings of the recipe's moe section that are fields of the checkpoint's config, too.
_CONFIG_FIELDS = ("mtp_loss_weight", "balance_loss_weight", "bias_update_speed")


def build_training_model(recipe: TrainingRecipe, experts: ExpertSlice | None = None) -> PreTrainedModel | PeftModel:
    """Return the recipe's model in training mode, on the CPU unless `model.device_map` places it.

    New adapter weights are drawn from PyTorch's generator: seed it first. They are drawn for all experts, also where
    only some `experts` are read.

    Raises:
        RecipeError: the model cannot be loaded or trained as the recipe says.
        CheckpointError: its files are damaged.
    """
    on_gpu = torch.cuda.is_available() and not recipe.trainer.get("use_cpu", False)
    check_optimizer(str(recipe.trainer.get("optim", "")), on_gpu)
    model = load_for_training(recipe.model, experts)
    if recipe.stage in ON_TEXTS:
        model = use_head_loss(model)
    set_losses(model, recipe.moe)
    trained: PreTrainedModel | PeftModel = model
    if recipe.adapter is not None:
        trained = attach(model, recipe.adapter)
        for config in trained.peft_config.values():
            # Whoever merges the adapter later must take the same weights.
            config.revision = recipe.model.revision
    freeze_unreached(trained, recipe.moe, recipe.stage)
    check_merge(trained, recipe)
    _check_fp16(trained, recipe)
    return trained.train()


def load_for_training(settings: ModelSettings, experts: ExpertSlice | None = None) -> PreTrainedModel:
    """Return the model of a recipe, its weights in `settings.dtype`; of the routed experts those asked for, or all.

    Raises:
        RecipeError: there is no such model, or it cannot be loaded as the settings say.
        CheckpointError: its files are damaged.
    """
    folder = Path(settings.path).expanduser()
    path = str(folder) if folder.exists() else settings.path
    source = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": is_cache_all(path),
    }
    # AutoModel looks for an adapter beside the weights, too, and asks the Hub for it unless told not to.
    options: dict[str, Any] = {"adapter_kwargs": {"local_files_only": source["local_files_only"]}}
    options["dtype"] = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    if settings.device_map:
        options["device_map"] = settings.device_map
    if experts is not None:
        options["expert_slice"] = experts
    try:
        if settings.fp8 == "keep":
            config = AutoConfig.from_pretrained(path, **source)
            if not isinstance(config, SeekletConfig):
                raise RecipeError(
                    f"model.fp8 is keep, but {settings.path} is a {config.model_type}; allowed: "
                    "DeepSeek-V3-architecture checkpoints in block-fp8"
                )
            options["keep_fp8"] = True
        if settings.quantization:
            config = AutoConfig.from_pretrained(path, **source)
            double = settings.double_quantization
            options |= quantized_by(settings.quantization, config, options["dtype"], double)
        return AutoModelForCausalLM.from_pretrained(path, **source, **options)
    # The last where a file of weights was cut short, by a download that was broken off for instance.
    except (OSError, ImportError, SafetensorError) as error:
        raise RecipeError(f"model.path: {settings.path}: {say_not_found(path, error)}") from error
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"model: {settings.path}: {_first_line(error)}") from error


def check_expert_parallel(recipe: TrainingRecipe, processes: int | None = None) -> int:
    """Return how many processes are to share the routed experts, after checking that the model has so many.

    Args:
        recipe: whose model's config is read, if there is something to share.
        processes: of the run; None where it does not begin yet.

    Raises:
        RecipeError: the model has no routed experts, or they or the processes cannot be divided so.
    """
    sharing = recipe.trainer.get("expert_parallel", 1)
    if sharing == 1:
        return 1
    config, said = load_config(recipe.model), f"trainer.expert_parallel is {sharing}"
    if not isinstance(config, SeekletConfig):
        raise RecipeError(
            f"{said}, but {recipe.model.path} is a {config.model_type}; allowed: 1, except for mixtures of experts of "
            "the DeepSeek-V3 architecture"
        )
    if config.first_k_dense_replace >= config.num_hidden_layers:
        raise RecipeError(f"{said}, but {recipe.model.path} has no routed experts; allowed: 1")
    experts = config.n_routed_experts
    if experts % sharing or (processes or sharing) % sharing:
        numbers = [number for number in range(1, experts + 1) if experts % number == 0]
        allowed = ", ".join(str(n) for n in numbers if processes is None or processes % n == 0)
        where = "" if processes is None else f" in {processes} process{'es' * (processes > 1)}"
        advice = "" if processes != 1 else "; start it with accelerate launch, one process for each GPU"
        raise RecipeError(f"{said}, for {experts} routed experts{where}; allowed: a divisor, {allowed}{advice}")
    return sharing


def set_losses(model: PreTrainedModel, settings: MoeSettings) -> None:
    """Put what `settings` say in place of the checkpoint's own in `model.config`.

    Raises:
        RecipeError: the model has none of it.
    """
    given = {name: value for name in _CONFIG_FIELDS if (value := getattr(settings, name)) is not None}
    if given and not isinstance(model, SeekletForCausalLM):
        name = next(iter(given))
        raise RecipeError(
            f"moe.{name} is {given[name]}, but the model is a {type(model).__name__}; allowed: null, except for "
            "DeepSeek-V3-architecture models"
        )
    for name, value in given.items():
        setattr(model.config, name, value)


def mtp_mode(model: nn.Module, settings: MoeSettings, stage: str) -> MtpLoss:
    """Return how multi-token prediction is trained: as `settings` say, or "off" where there is none to train.

    Where they say nothing: in full on texts, detached on the model's own samples, and there not at all where the
    modules are frozen.
    """
    seeklet = find_seeklet(model)
    if seeklet is None or not seeklet.config.num_nextn_predict_layers or not seeklet.config.mtp_loss_weight:
        return "off"
    if settings.mtp_loss is not None:
        return settings.mtp_loss
    if stage in ON_TEXTS:
        return "full"
    return "detached" if any(parameter.requires_grad for parameter in _mtp_parameters(seeklet)) else "off"


def _mtp_parameters(seeklet: SeekletForCausalLM) -> list[nn.Parameter]:
    modules = list(seeklet.model.layers)[seeklet.config.num_hidden_layers :]
    return [parameter for module in modules for parameter in module.parameters()]


def describe(model: nn.Module, recipe: TrainingRecipe) -> list[str]:
    """Return lines that say how much of the model is trained, and how."""
    sizes = list(whole_sizes(model))
    total = sum(size for _, size in sizes)
    trained = sum(size for parameter, size in sizes if parameter.requires_grad)
    lines = [f"{trained:,} of {total:,} parameters trained ({trained / max(1, total):.2%})"]
    seeklet = find_seeklet(model)
    if (sharing := recipe.trainer.get("expert_parallel", 1)) > 1 and seeklet is not None:
        lines.append(
            f"routed experts: {seeklet.config.n_routed_experts}, shared by {sharing} processes "
            f"({seeklet.config.n_routed_experts // sharing} of each layer on each)"
        )
    if seeklet is not None and seeklet.config.num_nextn_predict_layers:
        mode = mtp_mode(model, recipe.moe, recipe.stage)
        weight = f", weight {seeklet.config.mtp_loss_weight:g}" if mode != "off" else ""
        lines.append(f"multi-token prediction loss: {mode}{weight}")
    halves = {torch.bfloat16, torch.float16}
    if recipe.adapter is None and any(p.requires_grad and p.dtype in halves for p in model.parameters()):
        lines.append(
            "the weights themselves are held in half precision, which loses small updates; "
            "model.dtype: float32 with trainer.bf16: true keeps them"
        )
    return lines


def find_seeklet(model: nn.Module) -> SeekletForCausalLM | None:
    """Return the seeklet model inside what PEFT, accelerate or DDP made of it, or None where it is another model."""
    return find_inside(model, SeekletForCausalLM)


def check_drafts(model: nn.Module, wanted: bool, key: str) -> None:
    """Check that the model has what drafts, where the recipe's `key` wants that.

    Raises:
        RecipeError: it has not.
    """
    seeklet = find_seeklet(model)
    if wanted and (seeklet is None or not seeklet.config.num_nextn_predict_layers):
        raise RecipeError(f"{key} is true, but the model has no multi-token prediction modules; allowed: false")


def check_rollout(model: nn.Module, settings: RolloutSettings) -> None:
    """Check that the model can be sampled as `settings` say.

    Raises:
        RecipeError: it has no modules that draft, or nothing that routes.
    """
    check_drafts(model, settings.use_mtp, "rollout.use_mtp")
    seeklet = find_seeklet(model)
    if seeklet is not None and moe_layer_indices(seeklet):
        return
    for name in ("replay_routing", "record_router"):
        if getattr(settings, name):
            raise RecipeError(
                f"rollout.{name} is true, but the model routes nothing that seeklet could record; allowed: false, "
                "except for DeepSeek-V3-architecture mixtures of experts"
            )


def freeze_unreached(model: nn.Module, settings: MoeSettings, stage: str = "sft") -> None:
    """Freeze multi-token prediction modules that no loss reaches: several processes would wait for their gradients.

    Raises:
        RecipeError: the adapter reaches modules that would not be trained, or the loss reaches nothing that is.
    """
    seeklet = find_seeklet(model)
    if seeklet is None or not seeklet.config.num_nextn_predict_layers:
        return
    trained = [parameter for parameter in _mtp_parameters(seeklet) if parameter.requires_grad]
    mode, adapts = mtp_mode(model, settings, stage), isinstance(model, PeftModel)
    if mode == "off" and trained and adapts:
        raise RecipeError(
            "adapter.targets reaches the multi-token prediction modules, but their loss is off (moe.mtp_loss, or a "
            "weight of 0); leave mtp out of the targets, or train it with moe.mtp_loss: detached or full"
        )
    if mode == "detached" and not trained:
        raise RecipeError(
            "moe.mtp_loss is detached, but nothing in the multi-token prediction modules is trained; add mtp to "
            "adapter.targets, or set moe.mtp_loss to off or full"
        )
    if mode == "off":
        for parameter in trained:
            parameter.requires_grad_(False)


def check_merge(model: nn.Module, recipe: TrainingRecipe) -> None:
    """Check that the adapter can be merged into the model as the recipe says.

    Raises:
        RecipeError: it cannot.
    """
    if recipe.output.merge_dtype == "fp8" and find_seeklet(model) is None:
        raise RecipeError(
            f"output.merge_dtype is fp8, but {recipe.model.path} is not of the DeepSeek-V3 architecture; allowed: "
            "auto, float32, bfloat16, float16"
        )


def check_tokens(model: nn.Module, settings: ModelSettings, rows: Dataset) -> None:
    """Check that the model knows every token of the data, which it may not where its tokenizer is another's.

    Raises:
        RecipeError: it does not.
    """
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    num_known = bare.get_input_embeddings().weight.shape[0]
    chunks = rows.data.column("input_ids").chunks
    largest = max((max_of(chunk.flatten()).as_py() or 0 for chunk in chunks), default=0)
    if largest >= num_known:
        raise RecipeError(
            f"model.tokenizer: {settings.tokenizer or settings.path} writes token {largest:,}, and the model knows "
            f"{num_known:,} tokens; allowed: the tokenizer that belongs to the model"
        )


def _check_fp16(model: nn.Module, recipe: TrainingRecipe) -> None:
    if recipe.trainer.get("fp16") and any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
        raise RecipeError(
            "trainer.fp16 scales gradients, which weights held in float16 cannot be; allowed: model.dtype float32, or "
            "trainer.bf16"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
