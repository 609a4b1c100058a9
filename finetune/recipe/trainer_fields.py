"""The `trainer:` section of a recipe: fields of TRL's own config class, and those that seeklet sets by itself."""

import dataclasses
import importlib
from collections.abc import Mapping
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from ..limits import ABOVE_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, Range
from .fields import INVALID, FieldReader
from .messages import alternatives, is_mapping, say_unknown_key
from .yaml_text import Setting

# Import path of the config class whose fields a stage's `trainer:` section takes.
CONFIG_CLASSES = {
    "sft": ("seeklet.finetune.sft_config", "SeekletSFTConfig"),
    "grpo": ("trl", "GRPOConfig"),
    "distill": ("trl", "DistillationConfig"),
    "distill-topk": ("trl", "SFTConfig"),
}

_HUB = "is not set while training: the result is published afterwards, when it has been looked at"
_CHECKPOINTS = "is set by seeklet, whose checkpoints resume bit by bit"
_LAUNCH = "belongs to accelerate's own file: accelerate launch --config_file recipes/accelerate/fsdp2_8gpu.yaml"
# Fields that exist and would contradict the rest of the recipe or of the command.
SET_BY_SEEKLET = {
    "output_dir": "belongs to output.dir",
    "max_length": "belongs to data.max_tokens",
    "truncation_mode": "belongs to data.on_long",
    "packing": "belongs to data.packing",
    "eval_packing": "belongs to data.packing; held-out data is not packed",
    "packing_strategy": "is set by seeklet; data.packing turns packing on",
    "padding_free": "is set by seeklet; data.packing turns packing on",
    "assistant_only_loss": "belongs to data.assistant_only",
    "completion_only_loss": "belongs to data.assistant_only",
    "chat_template_path": "belongs to data.chat_template",
    "dataset_text_field": "belongs to data.columns",
    "dataset_kwargs": "is set by seeklet, which prepares the data",
    "dataset_num_proc": "is set by seeklet, which prepares the data",
    "remove_unused_columns": "is set by seeklet, which prepares the data",
    "label_names": "is set by seeklet, which prepares the data",
    "length_column_name": "is set by seeklet, which prepares the data",
    "pad_to_multiple_of": "is set by seeklet, which pads a batch to its longest row",
    "eos_token": "is the tokenizer's; data.chat_template says how a turn ends",
    "pad_token": "is the tokenizer's",
    "model_init_kwargs": "belongs to the keys of model",
    "trust_remote_code": "belongs to model.trust_remote_code",
    "router_aux_loss_coef": "belongs to moe.balance_loss_weight",
    "loss_type": "is set by seeklet, whose head loss never holds all logits",
    "use_liger_kernel": "is set by seeklet, whose head loss never holds all logits",
    "liger_kernel_config": "is set by seeklet, whose head loss never holds all logits",
    "use_cache": "is set by seeklet",
    "resume_from_checkpoint": "belongs to the command line: seeklet train RECIPE --resume",
    "do_train": "belongs to the command line: seeklet train RECIPE",
    "do_eval": "belongs to the command line: seeklet evaluate RECIPE",
    "do_predict": "belongs to the command line: seeklet evaluate RECIPE",
    "local_rank": "is set by accelerate launch",
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "parallelism_config": _LAUNCH,
    "ignore_data_skip": _CHECKPOINTS,
    "save_only_model": _CHECKPOINTS,
    "restore_callback_states_from_checkpoint": _CHECKPOINTS,
    "enable_jit_checkpoint": _CHECKPOINTS,
    "disable_tqdm": "is set by seeklet, which shows its own progress",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_private_repo": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
}

# What is different where the model learns from its own samples.
_SAMPLED: dict[str, str | None] = {
    "cache_implementation": "is set by seeklet, whose rollouts are its own",
    "generation_kwargs": "is set by seeklet; trainer has temperature, top_p, top_k, min_p and max_completion_length",
    "max_tool_calling_iterations": "is not there yet: rollouts call no tools",
}
# What is different in a stage; None: a field like any other.
SET_BY_SEEKLET_IN: dict[str, dict[str, str | None]] = {
    "grpo": {
        **_SAMPLED,
        "loss_type": None,
        "reward_weights": "belongs to rewards: the weight of each",
        "use_transformers_paged": "is set by seeklet, whose rollouts are its own; trainer.use_vllm leaves them to vLLM",
        "use_transformers_continuous_batching": "is set by seeklet, whose rollouts are its own",
        "transformers_continuous_batching_config": "is set by seeklet, whose rollouts are its own",
        "log_completions_hub_repo": _HUB,
    },
    "distill": {
        **_SAMPLED,
        "teacher_model_name_or_path": "belongs to teacher.path",
        "teacher_model_revision": "belongs to teacher.revision",
        "teacher_model_init_kwargs": "belongs to the keys of teacher",
        "repetition_penalty": "is 1: samples have to be the student's own",
    },
}

# What became of keys that TRL, transformers, PEFT or other tools know, or once knew.
MOVED = {
    "overwrite_output_dir": "no longer exists; no run is overwritten: choose a new output.dir, or --resume",
    "torch_dtype": "is now model.dtype",
    "warmup_ratio": "no longer exists; trainer.warmup_steps below 1 is a share of all steps",
    "max_prompt_length": "no longer exists; data.max_tokens bounds the whole conversation",
    "max_seq_length": "is now data.max_tokens",
    "evaluation_strategy": "is now trainer.eval_strategy",
    "no_cuda": "is now trainer.use_cpu",
    "group_by_length": "is now trainer.train_sampling_strategy: group_by_length",
    "per_gpu_train_batch_size": "is now trainer.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "is now trainer.per_device_eval_batch_size",
    "logging_dir": "no longer exists; metrics go to output.dir",
    "save_safetensors": "no longer exists; everything is saved as safetensors",
    "half_precision_backend": "no longer exists; trainer.bf16 or trainer.fp16 choose the precision",
    "model_name_or_path": "is model.path here",
    "tokenizer_name": "is model.tokenizer here",
    "dataset_name": "is data.train here (hub:owner/name)",
    "train_file": "is data.train here",
    "validation_file": "is data.validation here",
    "lora_r": "is adapter.rank here",
    "lora_alpha": "is adapter.alpha here",
    "lora_dropout": "is adapter.dropout here",
    "lora_target_modules": "is adapter.targets here",
    "target_modules": "is adapter.targets here",
    "target_parameters": "is adapter.targets here (routed_experts)",
    "use_peft": "no longer needed; an adapter section trains an adapter",
    "adapter.r": "is adapter.rank here",
    "load_in_4bit": "is model.quantization: nf4 (or fp4) here",
    "load_in_8bit": "is model.quantization: int8 here",
    "early_stopping_patience": "is evaluation.patience here",
    "mtp_loss_weight": "belongs to moe.mtp_loss_weight",
}


# What progress bars, samplers and seeds take; far more than anyone means.
_COUNT = Range(least=1, most=2**31 - 1)
_SEED = Range(least=0, most=2**32 - 1)
_PORT = Range(least=1, most=65535)


class Narrowed(TypedDict, total=False):
    """Fields whose annotation in TRL allows more than makes sense."""

    learning_rate: Annotated[float, ABOVE_ZERO]
    num_train_epochs: Annotated[float, Range(above=0, most=10**6)]
    max_steps: Literal[-1] | Annotated[int, _COUNT]
    expert_parallel: Annotated[int, _COUNT]
    per_device_train_batch_size: Annotated[int, _COUNT]
    per_device_eval_batch_size: Annotated[int, _COUNT]
    gradient_accumulation_steps: Annotated[int, _COUNT]
    warmup_steps: Annotated[float, NOT_NEGATIVE]
    weight_decay: Annotated[float, NOT_NEGATIVE]
    max_grad_norm: Annotated[float, NOT_NEGATIVE]
    adam_beta1: Annotated[float, Range(least=0, below=1)]
    adam_beta2: Annotated[float, Range(least=0, below=1)]
    adam_epsilon: Annotated[float, ABOVE_ZERO]
    label_smoothing_factor: Annotated[float, SHARE]
    logging_steps: Annotated[float, ABOVE_ZERO]
    save_steps: Annotated[float, ABOVE_ZERO]
    eval_steps: Annotated[float, ABOVE_ZERO] | None
    save_total_limit: Annotated[int, POSITIVE] | None
    dataloader_num_workers: Annotated[int, Range(least=0, most=1024)]
    dataloader_prefetch_factor: Annotated[int, _COUNT] | None
    eval_accumulation_steps: Annotated[int, _COUNT] | None
    torch_compile_backend: Literal["inductor", "eager", "aot_eager", "cudagraphs"] | None
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"] | None
    neftune_noise_alpha: Annotated[float, NOT_NEGATIVE] | None
    torch_empty_cache_steps: Annotated[int, _COUNT] | None
    # The one figure of an evaluation while training that says how good a model is; less is better.
    metric_for_best_model: Literal["loss", "eval_loss"] | None
    greater_is_better: Literal[False] | None
    seed: Annotated[int, _SEED]
    data_seed: Annotated[int, _SEED] | None


class NarrowedForVllm(TypedDict, total=False):
    """The same of what is left to vLLM."""

    vllm_mode: Literal["colocate", "server"]
    vllm_server_port: Annotated[int, _PORT]
    vllm_group_port: Annotated[int, _PORT]
    vllm_server_timeout: Annotated[float, ABOVE_ZERO]
    vllm_gpu_memory_utilization: Annotated[float, Range(above=0, most=1)]
    vllm_tensor_parallel_size: Annotated[int, _COUNT]
    vllm_max_model_length: Annotated[int, _COUNT] | None


class NarrowedInDistillation(NarrowedForVllm, total=False):
    """The same of DistillationConfig alone: other configs mean other things by these names."""

    beta: Annotated[float, SHARE]
    # Both logits are divided by it.
    temperature: Annotated[float, ABOVE_ZERO]
    top_p: Annotated[float, Range(above=0, most=1)]
    top_k: Annotated[int, Range(least=0, most=2**31 - 1)]
    min_p: Annotated[float, SHARE] | None
    max_completion_length: Annotated[int, _COUNT]


class NarrowedInReinforcement(NarrowedForVllm, total=False):
    """The same of GRPOConfig alone."""

    # Its loss is near 0 whatever was learned; the mean reward of the held-out prompts says how good a model is.
    metric_for_best_model: Literal["reward", "eval_reward"] | None
    greater_is_better: Literal[True] | None


_NARROWED_IN: dict[str, type] = {"distill": NarrowedInDistillation, "grpo": NarrowedInReinforcement}


def set_by_seeklet(stage: str | None) -> dict[str, str]:
    """Return what to say of the fields of a stage's config class that seeklet sets by itself."""
    if stage is None:
        return SET_BY_SEEKLET
    changes = SET_BY_SEEKLET_IN.get(stage, {})
    there = list_trainer_fields(stage)
    return {name: said for name, said in (SET_BY_SEEKLET | changes).items() if said is not None and name in there}


def read_trainer(reader: FieldReader, setting: Setting, stage: str) -> dict[str, Any] | Any:
    """Return the fields of a `trainer:` section, of the types that TRL's config class declares, or INVALID."""
    if not isinstance(setting.value, dict):
        return reader.read(setting, Mapping[str, Any], "trainer")
    annotations = list_trainer_fields(stage)
    own = set_by_seeklet(stage)
    allowed = [name for name in annotations if name not in own]
    fields = {}
    for name, given in setting.value.items():
        if name in allowed:
            fields[name] = reader.read(given, annotations[name], f"trainer.{name}")
        elif name in annotations:
            reader.problems.add(given.place, f"trainer.{name}: {own[name]}")
        else:
            reader.problems.add(given.place, say_unknown_key(f"trainer.{name}", allowed, reader.moved))
    return INVALID if INVALID in fields.values() else fields


@cache
def list_trainer_fields(stage: str) -> dict[str, Any]:
    """Return name -> annotation of the fields of the stage's config class, choices and ranges included."""
    module, name = CONFIG_CLASSES[stage]
    config_class = getattr(importlib.import_module(module), name)
    hints = get_type_hints(config_class)
    narrowed = get_type_hints(Narrowed, include_extras=True)
    if stage in _NARROWED_IN:
        narrowed |= get_type_hints(_NARROWED_IN[stage], include_extras=True)
    return {
        field.name: narrowed.get(field.name) or _list_choices(field, hints[field.name])
        for field in dataclasses.fields(config_class)
        if field.init
    }


def _list_choices(field: dataclasses.Field, hint: Any) -> Any:
    """Return a field's annotation, narrowed to the values that its metadata or an Enum in it names."""
    if choices := field.metadata.get("choices"):
        literal: Any = Literal[tuple(choices)]
        return literal | None if field.default is None else literal
    # "SchedulerType | str" means one of its names, not any text; "dict | str" means a section, or one in another file.
    parts = alternatives(hint)
    narrower = any((isinstance(part, type) and issubclass(part, Enum)) or is_mapping(part) for part in parts)
    return reduce(or_, [part for part in parts if part is not str]) if narrower else hint
