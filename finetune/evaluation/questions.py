"""Held-out conversations as questions: what the model is given, and the answer it is held against."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..data.rows import Row
from ..data.template import ChatTemplate, render
from ..published import public_name
from ..reasoning import opens_reasoning
from .answers import final_answer


@dataclass(frozen=True)
class Question:
    """The last turn of an assistant in a conversation, to be written by the model."""

    messages: list[dict[str, Any]]
    """All before that turn."""
    reference: str
    """What that turn says in the data, its reasoning left out."""
    source: str
    """Where the conversation stands: file:line, the file without its folder."""
    prompt_ids: list[int]
    """The messages by the chat template, up to where the assistant begins."""
    thinking: bool
    """Whether the template has begun the assistant's reasoning with `<think>`."""


def read_questions(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[Question]:
    """Return a question for each row whose last message is an assistant's and says something besides its reasoning."""
    questions = []
    for row in rows:
        *before, last = row.messages
        reference = final_answer(last["content"])
        if last["role"] != "assistant" or not reference or not before:
            continue
        prompt = render(tokenizer, template, before, row.tools, add_generation_prompt=True).text
        # As training does: the template has written the special tokens already.
        ids = cast(list[int], tokenizer(prompt, add_special_tokens=False)["input_ids"])
        source = str(row.source._replace(file=public_name(row.source.file)))
        questions.append(Question(before, reference, source, ids, opens_reasoning(prompt)))
    return questions


def choose(questions: Sequence[Question], number: int, seed: int) -> list[Question]:
    """Return `number` of the questions, or all if there are fewer, drawn by `seed`, in their own order."""
    if len(questions) <= number:
        return list(questions)
    chosen = sorted(Random(seed).sample(range(len(questions)), number))
    return [questions[index] for index in chosen]


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, generation_config: Any, trained_ends: Iterable[int] = ()
) -> frozenset[int]:
    """Return the tokens that end an answer: the checkpoint's, the tokenizer's, and those that training ends turns with.

    `trained_ends` are the last trained tokens of conversations; they count where they are special or added tokens, such
    as `<|im_end|>` when a base model with another end token learns a chat template.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    found.add(tokenizer.eos_token_id)
    found |= set(trained_ends) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return frozenset(token for token in found if token is not None)
