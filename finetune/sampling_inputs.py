"""What rollouts and evaluations of reasoning begin with: tokenizer, problems as the template writes them, rewards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from .attempts import Attempts, AttemptSettings
from .errors import DataError, RecipeError, TrainingError
from .evaluation.models import Weights, find_weights, load_tokenizer
from .prompts.prepare import prepare_prompts, set_template
from .prompts.read import Prompt, read_prompts
from .prompts.settings import PromptSettings
from .recipe import ModelSettings
from .rewards import RewardSet, RewardSettings


@dataclass(frozen=True)
class SamplingInputs:
    """All that is needed beside the weights, checked."""

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    held_out: list[Prompt]
    rewards: RewardSet


def read_inputs(
    model: ModelSettings,
    prompts: PromptSettings,
    rewards: Sequence[RewardSettings],
    chat_template: str | None,
    *,
    leave_out_long: bool,
    failures_file: Path | None = None,
) -> SamplingInputs:
    """Return the tokenizer of a model, with the template set, the prompts and the rewards.

    Args:
        model: may be an adapter.
        prompts: see there.
        rewards: see there.
        chat_template: beside `prompts.chat_template`.
        leave_out_long: whether prompts that are too long are left out here, where they may be; else they stay.
        failures_file: where samples go that a reward cannot score.

    Raises:
        RecipeError: the adapter's base, a tokenizer or a reward is not to be had.
        AdapterError: the adapter cannot be read.
        DataError: the prompts cannot be used.
    """
    weights = find_weights(model)
    tokenizer = load_tokenizer(weights.model)
    prompts = replace(prompts, chat_template=chat_template or prompts.chat_template)
    set_template(tokenizer, prompts)
    made = RewardSet(rewards, failures_file=failures_file)
    read = prepare_prompts if leave_out_long or prompts.on_long == "error" else _read
    train, held_out = read(prompts, tokenizer)
    if prompts.validation and not held_out:
        raise DataError(
            f"prompts.validation: {prompts.validation} holds out none of {len(train):,} prompts; allowed: a larger "
            "share, files of their own, or 0"
        )
    return SamplingInputs(weights, tokenizer, train, held_out, made)


def check_attempts(inputs: SamplingInputs, settings: AttemptSettings, section: str) -> Attempts:
    """Return what encodes prompts as settings say, and samples nothing, after checking that it can tell what is right.

    Raises:
        RecipeError: there is no threshold, and no reward that verifies; `section` is that of the recipe.
    """
    try:
        return Attempts(
            inputs.tokenizer, inputs.rewards, _refuse, frozenset(), threshold=settings.threshold, chat_template=None
        )
    except RecipeError as error:
        raise RecipeError(f"{section}.{error}") from None


@contextmanager
def sampling_errors_told(section: str, where_to_go_on: str) -> Iterator[None]:
    """Say in a line what to lower where memory is full; `section` is the recipe's that says how is sampled.

    Raises:
        TrainingError: memory was full.
    """
    smaller = f"lower {section}.batch_size or {section}.max_new_tokens{where_to_go_on}"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full; {smaller}") from error
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for a CPU's memory that is full.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(f"this machine's memory is full; {smaller}") from error


def describe_rewards(rewards: RewardSet) -> str:
    """Return the rewards and their weights in a line."""
    named = zip(rewards.names, rewards.weights, strict=True)
    return "rewards: " + ", ".join(f"{name} (weight {weight:g})" for name, weight in named)


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, soft_wrap=True)


def _read(prompts: PromptSettings, _: PreTrainedTokenizerBase) -> tuple[list[Prompt], list[Prompt]]:
    return read_prompts(prompts)


def _refuse(*_: object) -> list[list[int]]:
    raise AssertionError("nothing is to be sampled here")
