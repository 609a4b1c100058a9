"""What a recipe would do: its data in tokens, its steps, what it trains and the memory it takes; no weight is read."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from seeklet.modeling.expert_slices import ExpertSlice, whole_sizes

from .data.prepare import Prepared, prepare
from .evaluation.models import load_tokenizer, num_processes
from .expert_parallel import cut_experts
from .lora.attach import adapted_table, attach
from .memory import Batch, Memory, measure_memory
from .meta_model import build_meta_model
from .prompts.prepare import count_tokens, prepare_prompts, set_template
from .prompts.read import Prompt
from .recipe import GrpoRecipe, Recipe, TopKRecipe, TrainingRecipe, as_yaml
from .rewards import RewardSet
from .steps import count_steps
from .trainer_settings import Config, check_validation, complete, make_grpo_config, make_sft_config
from .training_model import (
    check_drafts,
    check_expert_parallel,
    check_merge,
    check_rollout,
    freeze_unreached,
    set_losses,
)


def show_dry_run(recipe: Recipe, console: Console) -> None:
    """Print the whole recipe, what becomes of its data, its steps, what it trains, and the memory that takes.

    Raises:
        RecipeError: model or adapter are not as the recipe says.
        DataError: the data cannot be used as the recipe says.
    """
    config = make_sft_config(recipe, Path(recipe.output.dir))
    recipe = complete(recipe, config)
    check_expert_parallel(recipe)
    # Before anything is printed: what is wrong with the recipe stands alone then.
    model = trained_model(recipe)
    check_drafts(model, recipe.evaluation.use_mtp, "evaluation.use_mtp")
    prepared = prepare(recipe.data, load_tokenizer(recipe.model))
    check_validation(recipe, len(prepared.validation))
    show_recipe(recipe, console)
    show_data(config, prepared, console)
    show_model(recipe, config, model, largest_batch(recipe, config, prepared, model), console)


def show_grpo_dry_run(recipe: GrpoRecipe, console: Console) -> None:
    """Print the same for reinforcement learning, with the prompts in place of the data.

    Raises:
        RecipeError: model, adapter or rewards are not as the recipe says.
        DataError: the prompts cannot be used as the recipe says.
    """
    config = make_grpo_config(recipe, Path(recipe.output.dir))
    recipe = complete(recipe, config)
    model = trained_model(recipe)
    check_rollout(model, recipe.rollout)
    tokenizer = load_tokenizer(recipe.model)
    set_template(tokenizer, recipe.prompts)
    train, validation = prepare_prompts(recipe.prompts, tokenizer)
    check_validation(recipe, len(validation))
    rewards = RewardSet(recipe.rewards)
    samples = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_processes()
    assert config.num_generations is not None and config.max_completion_length is not None
    per_step = samples // config.num_generations
    per_epoch = max(1, len(train) // max(1, per_step))
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)

    show_recipe(recipe, console)
    longest = show_prompts(tokenizer, train, validation, console)
    named = zip(rewards.names, rewards.weights, strict=True)
    console.print("rewards: " + ", ".join(f"{name} (weight {weight:g})" for name, weight in named))
    console.rule("steps")
    console.print(
        f"{total:,} optimizer steps of {samples:,} samples, {config.num_generations:,} of each of {per_step:,} "
        f"prompts, up to {config.max_completion_length:,} tokens each; processes: {num_processes()}"
    )
    tokens = longest + config.max_completion_length
    show_model(recipe, config, model, make_batch(config, model, tokens), console)


def show_data(config: SFTConfig, prepared: Prepared, console: Console) -> None:
    """Print what became of the data, and in how many steps it is learned."""
    steps = count_steps(config, len(prepared.train), num_processes())
    console.rule("data")
    for line in prepared.report.lines():
        console.print(line, markup=False, soft_wrap=True)
    console.rule("steps")
    console.print(
        f"{steps.total:,} optimizer steps of {steps.sequences:,} sequences, {steps.per_epoch:,} an epoch; "
        f"processes: {num_processes()}"
    )


def show_prompts(
    tokenizer: PreTrainedTokenizerBase, train: Sequence[Prompt], validation: Sequence[Prompt], console: Console
) -> int:
    """Return the tokens of the longest prompt, after printing how many there are and how long."""
    console.rule("prompts")
    lengths = [count_tokens(tokenizer, prompt) for prompt in train]
    console.print(
        f"{len(train):,} prompts to train on, {len(validation):,} held out; {sum(lengths) / len(lengths):,.0f} tokens "
        f"on average, at most {max(lengths):,}"
    )
    return max(lengths)


def trained_model(recipe: TrainingRecipe) -> nn.Module:
    """Return the recipe's model on the meta device, with its adapter.

    Raises:
        RecipeError: model or adapter are not as the recipe says.
    """
    model = build_meta_model(recipe.model)
    set_losses(model, recipe.moe)
    if recipe.adapter is not None:
        model = attach(model, recipe.adapter)
    freeze_unreached(model, recipe.moe, recipe.stage)
    check_merge(model, recipe)
    return model


def show_recipe(recipe: TrainingRecipe, console: Console) -> None:
    """Print the whole recipe."""
    console.rule("recipe, defaults included")
    console.print(as_yaml(recipe).rstrip(), markup=False, highlight=False, soft_wrap=True)


def show_model(
    recipe: TrainingRecipe,
    config: Config,
    model: nn.Module,
    batch: Batch,
    console: Console,
    teacher: nn.Module | None = None,
) -> None:
    """Print what is trained and the memory that takes, beside the weights of a `teacher` where one is there then."""
    console.rule("model")
    console.print(_describe_parameters(model, recipe.model.quantization))
    if recipe.adapter is not None:
        console.print(adapted_table(model))  # pyright: ignore[reportArgumentType] (attach has returned a PeftModel)
    sharing = recipe.trainer.get("expert_parallel", 1)
    if sharing > 1:
        cut_experts(model, ExpertSlice(0, sharing))
    memory = measure_memory(model, OptimizerNames(config.optim).value, batch, teacher)
    console.rule("memory")
    if sharing > 1:
        console.print(f"{sharing} processes share the routed experts; of each one:")
    if num_processes() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        console.print(f"FSDP shares weights, gradients and optimizer among {num_processes()} processes; of each one:")
        memory = memory.shared(num_processes())
    console.print(_memory_table(memory, config))
    where, free = free_memory(recipe, config)
    verdict = "fits" if memory.total <= free else "does not fit"
    console.print(f"Free in {where}: {show_bytes(free)}, so this {verdict} here.")
    console.print("Dry run: nothing was trained, and nothing written.")


def largest_batch(recipe: Recipe | TopKRecipe, config: SFTConfig, prepared: Prepared, model: nn.Module) -> Batch:
    """Return the largest batch that one process gets at a time."""
    tokens = recipe.data.max_tokens if recipe.data.packing else prepared.report.train.tokens.maximum
    return make_batch(config, model, tokens)


def make_batch(config: Config, model: nn.Module, tokens: int) -> Batch:
    """Return the batch of sequences of at most so many tokens that one process gets at a time."""
    held = max(parameter.dtype.itemsize for parameter in model.parameters())
    return Batch(
        sequences=config.per_device_train_batch_size,
        tokens=tokens,
        itemsize=2 if config.bf16 or config.fp16 else held,
        checkpointing=config.gradient_checkpointing,
    )


def free_memory(recipe: TrainingRecipe, config: Config) -> tuple[str, int]:
    """Return where the recipe would run on this machine, and how many bytes are free there."""
    if config.use_cpu or not torch.cuda.is_available():
        return "this machine's memory", psutil.virtual_memory().available
    devices = range(torch.cuda.device_count()) if recipe.model.device_map else [0]
    free = sum(torch.cuda.mem_get_info(device)[0] for device in devices)
    return (f"{len(devices)} GPUs" if len(devices) > 1 else "this GPU"), free


def show_bytes(count: int) -> str:
    """Return a number of bytes in the unit that suits it: 1.21 GB, 35.0 MB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1000:.3g} kB"


def _describe_parameters(model: nn.Module, quantization: str | None) -> str:
    sizes = list(whole_sizes(model))
    total = sum(size for _, size in sizes)
    trained = sum(size for parameter, size in sizes if parameter.requires_grad)
    held: dict[str, int] = {}
    for parameter, size in sizes:
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.dtype == torch.uint8 and quantization is not None:
            dtype = quantization
        held[dtype] = held.get(dtype, 0) + size
    dtypes = ", ".join(f"{count:,} in {dtype}" for dtype, count in held.items())
    return f"{total:,} parameters ({dtypes}); {trained:,} trained ({trained / total:.2%})"


def _memory_table(memory: Memory, config: Config) -> Table:
    table = Table("part", "bytes", "how it is known")
    table.columns[1].justify = "right"
    counted = "counted from the model's shapes"
    known = counted if memory.optimizer is not None else "nobody has counted what it keeps"
    table.add_row("weights", show_bytes(memory.weights), counted)
    if memory.teacher:
        table.add_row("teacher", show_bytes(memory.teacher), counted)
    table.add_row("gradients", show_bytes(memory.gradients), counted)
    table.add_row(
        "optimizer",
        "?" if memory.optimizer is None else show_bytes(memory.optimizer),
        f"{OptimizerNames(config.optim).value}: {known}",
    )
    table.add_row("activations", show_bytes(memory.activations), "estimated, for the largest batch")
    table.add_row("together", show_bytes(memory.total), "without what PyTorch and the device need for themselves")
    return table
