"""Prompts as a trainer takes them: none too long, each with its columns."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.template import choose_template, served_template
from ..errors import DataError
from .read import Prompt, read_prompts
from .settings import PromptSettings

# Of a row: its columns as JSON, since rows of one file need not have the same.
COLUMNS = "columns"


def set_template(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
    """Give the tokenizer the template that prompts are written with.

    Raises:
        DataError: there is none.
    """
    try:
        template = choose_template(tokenizer, settings.chat_template, assistant_only=False)
    except DataError as error:
        # It knows the section `data` only.
        raise DataError(str(error).replace("data.chat_template", "prompts.chat_template")) from None
    tokenizer.chat_template = served_template(template)


def prepare_prompts(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts to train on and those held out, none longer than the settings allow.

    Raises:
        DataError: they cannot be read, or some are too long.
    """
    kept = []
    for prompts in read_prompts(settings):
        long = [prompt for prompt in prompts if count_tokens(tokenizer, prompt) > settings.max_tokens]
        if long and settings.on_long == "error":
            raise DataError(
                f"{long[0].source}: the prompt has {count_tokens(tokenizer, long[0]):,} tokens, and {len(long):,} are "
                f"longer than prompts.max_tokens, {settings.max_tokens:,}; raise it, or set prompts.on_long to skip"
            )
        sources = {prompt.source for prompt in long}
        kept.append([prompt for prompt in prompts if prompt.source not in sources])
    if not kept[0]:
        raise DataError(f"prompts: all are longer than prompts.max_tokens, {settings.max_tokens:,}")
    return kept[0], kept[1]


def as_dataset(prompts: Sequence[Prompt]) -> Dataset:
    """Return the prompts as TRL takes them, each row's columns as JSON."""
    rows = [{"prompt": prompt.messages, COLUMNS: json.dumps(prompt.columns, default=str)} for prompt in prompts]
    return Dataset.from_list(rows)


def with_columns(function: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
    """Return a reward function that is given each row's columns by name where it would be given their JSON."""

    def call(prompts: Any, completions: Any, **given: Any) -> list[float | None]:
        rows = [json.loads(row) for row in given.pop(COLUMNS)]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        return function(prompts=prompts, completions=completions, **{**columns, **given})

    call.__name__ = function.__name__
    return call


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """Return the length of the prompt as the template writes it, the assistant's header included."""
    tokens: Any = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=True)
    return len(tokens["input_ids"])


def as_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """Return the prompt as the template writes it."""
    text: Any = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    return text
