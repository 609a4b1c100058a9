"""The held-out split of a recipe: the very tokens and masks training would use, and the questions in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..data.prepare import prepare
from ..errors import DataError
from ..recipe import Recipe
from .likelihood import Scored
from .questions import Question, choose, read_questions


@dataclass(frozen=True)
class HeldOut:
    """Conversations that training does not see."""

    scored: Sequence[Scored]
    """All of them, for the loss."""
    questions: Sequence[Question]
    """Those to be answered."""

    @property
    def last_trained_tokens(self) -> set[int]:
        """What conversations end with for a model trained on them: the template's end of a turn."""
        return {row.input_ids[_last(row.assistant_mask)] for row in self.scored}


def read_held_out(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Return the recipe's held-out conversations, prepared as training prepares them.

    Raises:
        DataError: the data cannot be used, or nothing is held out.
    """
    data, settings = recipe.data, recipe.evaluation
    prepared = prepare(data, tokenizer, held_out_only=True)
    rows = cast(Iterable[dict[str, list[int]]], prepared.validation)
    tokens = [Scored(row["input_ids"], row["assistant_masks"]) for row in rows]
    # The first token is never predicted.
    scored = [row for row in tokens if any(row.assistant_mask[1:])]
    if not scored:
        raise DataError(
            f"nothing is held out to evaluate on: data.validation is {data.validation}; allowed: files, or a share "
            "large enough to hold a conversation"
        )
    questions = read_questions(prepared.validation_rows, tokenizer, prepared.template)
    # The loss needs no answers; the report shows some in any case.
    wanted = settings.num_examples if set(settings.metrics) - {"loss"} else settings.num_samples
    return HeldOut(scored, choose(questions, wanted, data.seed))


def _last(mask: Sequence[int]) -> int:
    return max(index for index, trained in enumerate(mask) if trained)
