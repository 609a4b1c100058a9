"""Attempts at problems: completions that a model samples, as text, with what the rewards make of each."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .data.template import choose_template, render
from .errors import DataError, RecipeError
from .evaluation.generation import read_answer
from .evaluation.questions import end_tokens
from .prompts.read import Prompt
from .reasoning import THINK, opens_reasoning
from .rewards import RewardSet, Scored
from .sampling import Sampling, sample

# Sums of weights times scores come out a little below what they are meant to be.
ROUNDING = 1e-9
# Token ids of prompts, how many samples of each, and a seed; returns the samples in order of prompts.
Sampler = Callable[[Sequence[Sequence[int]], int, int], list[list[int]]]


class AttemptSettings(Protocol):
    """What settings of rollouts and of evaluations have in common."""

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        ...

    @property
    def batch_size(self) -> int:
        """Completions sampled at a time."""
        ...

    @property
    def threshold(self) -> float | None:
        """The total reward that counts as right."""
        ...

    @property
    def chat_template(self) -> str | None:
        """A shipped template or a path."""
        ...


class EncodedPrompt(NamedTuple):
    """A prompt as the chat template writes it, up to where the assistant begins."""

    ids: list[int]
    opens_reasoning: bool
    """Whether it ends in the tag that opens reasoning, so that completions begin inside."""


@dataclass(frozen=True)
class Attempt:
    """One completion and what it was given."""

    text: str
    """From `<think>` on, where the prompt had written that too; without the token that ended it."""
    num_tokens: int
    """As sampled, with the token that ended it."""
    finished: bool
    """Whether it ended by itself rather than at the limit."""
    reward: float | None
    """The weighted sum; None where no reward has anything to say."""
    rewards: Mapping[str, float | None]
    reasons: Mapping[str, str]
    """Why rewards could not score it, by their names."""
    is_right: bool
    """Whether the task was done; see `is_right`."""


def make_sampler(model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, rows_at_a_time: int) -> Sampler:
    """Return the sampler of a model in this process, which samples so many rows at a time.

    The samples follow from the seed and the prompts they are drawn with; PyTorch's own generator is left as it was.
    """
    ends = end_tokens(tokenizer, getattr(model, "generation_config", None))
    pad: Any = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def draw(prompts: Sequence[Sequence[int]], num_samples: int, seed: int) -> list[list[int]]:
        size = max(1, rows_at_a_time // num_samples)
        drawn: list[list[int]] = []
        was_training = model.training
        model.eval()
        try:
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(seed)
                for start in range(0, len(prompts), size):
                    part = prompts[start : start + size]
                    by_prompt: list[list[list[int]]] = [[] for _ in part]
                    for first in range(0, num_samples, rows_at_a_time):
                        number = min(rows_at_a_time, num_samples - first)
                        rows = sample(model, part, number, sampling, ends, pad).tokens
                        for index, made in enumerate(by_prompt):
                            made += rows[index * number : (index + 1) * number]
                    drawn += [row for made in by_prompt for row in made]
        finally:
            model.train(was_training)
        return drawn

    return draw


class Attempts:
    """Makes attempts at problems, with one sampler and one set of rewards."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSet,
        sampler: Sampler,
        ends: frozenset[int],
        *,
        threshold: float | None = None,
        chat_template: str | None = None,
    ):
        """Make a maker.

        Args:
            tokenizer: encodes prompts by its chat template, or by the one that `chat_template` names.
            rewards: score the completions.
            sampler: see `make_sampler`.
            ends: tokens that end a completion.
            threshold: of the total reward; see `is_right`.
            chat_template: a shipped name or a path.

        Raises:
            RecipeError: there is no threshold, and no reward that verifies.
            DataError: there is no usable template.
        """
        self._tokenizer, self._rewards, self._sampler, self._ends = tokenizer, rewards, sampler, ends
        self._template = choose_template(tokenizer, chat_template, assistant_only=False)
        self._threshold = threshold
        each = zip(rewards.names, rewards.rewards, strict=True)
        self._highest = {name: reward.highest for name, reward in each if reward.verifies}
        if threshold is None and not self._highest:
            raise RecipeError(
                f"threshold: none is given, and no reward verifies answers ({', '.join(rewards.names)} don't); "
                "allowed: a number that the total reward must reach, or a reward that verifies, such as maths or exact"
            )

    @classmethod
    def by(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSet,
        settings: AttemptSettings,
        sampler: Sampler | None = None,
    ) -> "Attempts":
        """Return the maker that settings describe; `sampler` where it is not the model itself that samples.

        Raises:
            RecipeError: there is no threshold, and no reward that verifies.
            DataError: there is no usable template.
        """
        if sampler is None:
            sampler = make_sampler(model, tokenizer, settings.sampling, settings.batch_size)
        ends = end_tokens(tokenizer, getattr(model, "generation_config", None))
        template = settings.chat_template
        return cls(tokenizer, rewards, sampler, ends, threshold=settings.threshold, chat_template=template)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return a prompt's tokens.

        Raises:
            DataError: the template refuses it.
        """
        tools = prompt.columns.get("tools")
        try:
            text = render(self._tokenizer, self._template, prompt.messages, tools, add_generation_prompt=True).text
        except TemplateError as error:
            raise DataError(f"{prompt.source}: the chat template cannot write the prompt: {error}") from error
        # The template has written the special tokens already.
        ids = cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return EncodedPrompt(ids, opens_reasoning(text))

    def make(
        self, prompts: Sequence[Prompt], encoded: Sequence[EncodedPrompt], num_samples: int, seed: int
    ) -> list[list[Attempt]]:
        """Return `num_samples` attempts at each prompt.

        Raises:
            TrainingError: too many could not be scored.
        """
        drawn = self._sampler([each.ids for each in encoded], num_samples, seed)
        answers = [read_answer(self._tokenizer, tokens, self._ends) for tokens in drawn]
        texts, rows = [], []
        for index, (tokens, answer) in enumerate(zip(drawn, answers, strict=True)):
            prompt, opens = prompts[index // num_samples], encoded[index // num_samples].opens_reasoning
            texts.append(f"{THINK}{answer.text}" if opens else answer.text)
            rows.append({**prompt.columns, "prompt": prompt.messages, "completion_ids": tokens})
        scored = self._rewards.score([self._as_scored(text) for text in texts], rows)
        attempts = [
            Attempt(
                text,
                answer.num_tokens,
                answer.finished,
                each.total,
                each.parts,
                each.reasons,
                is_right(each, self._highest, self._threshold),
            )
            for text, answer, each in zip(texts, answers, scored, strict=True)
        ]
        return [attempts[start : start + num_samples] for start in range(0, len(attempts), num_samples)]

    def _as_scored(self, text: str) -> str:
        """Return a completion as rewards that were told what the prompt opens expect it."""
        return text.removeprefix(THINK) if self._rewards.opened else text


def is_right(scored: Scored, highest: Mapping[str, float], threshold: float | None = None) -> bool:
    """Return whether a completion was scored, and reaches the `threshold` with its total.

    Without one, every reward in `highest` (those that verify, with their best score) that has something to say about
    the row must give its best.
    """
    if scored.reasons or scored.total is None:
        return False
    if threshold is not None:
        return scored.total >= threshold - ROUNDING
    known = [(scored.parts[name], best) for name, best in highest.items() if scored.parts[name] is not None]
    return bool(known) and all(score is not None and score >= best - ROUNDING for score, best in known)


def batch_seed(seed: int, start: int) -> int:
    """Return the seed of the batch that begins with problem `start`: 63 bits that no other batch or seed shares."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{start}".encode(), digest_size=8).digest(), "little") >> 1
