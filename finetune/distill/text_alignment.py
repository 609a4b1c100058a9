"""Two tokenizations of one text, aligned: the spans of it that end with a token in both."""

# Ends and starts are characters of the text.

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ..errors import RecipeError

# What stands for bytes that make up no character, or none yet.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Ends(NamedTuple):
    """A text, its tokens, and for each how many characters of the text are complete with it."""

    text: str
    tokens: list[int]
    ends: list[int]


def decode_ends(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> Ends:
    """Return the text of tokens, of any tokenizer, special ones included.

    A token that ends inside a character adds nothing; the one that completes it adds it all. What is incomplete at the
    end is left out of the text.
    """
    text, ends, before = "", [], ""
    # As servers stream text: tokens in front of `start` have come out and no longer change what follows; those up to
    # `done` have come out too, and may, as where a space is written only between two words.
    start = done = 0
    for index in range(len(tokens)):
        after = tokenizer.decode(tokens[start : index + 1], clean_up_tokenization_spaces=False)
        assert isinstance(after, str)
        if len(after) > len(before) and not after.endswith(INCOMPLETE):
            text += after[len(before) :]
            start, done = done, index + 1
            before = tokenizer.decode(tokens[start:done], clean_up_tokenization_spaces=False)
            assert isinstance(before, str)
        ends.append(len(text))
    return Ends(text, tokens, ends)


def encode_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> Ends:
    """Return the tokens of a text, without those that a tokenizer puts around it.

    Raises:
        RecipeError: the tokenizer neither gives the text back nor says where in it its tokens stand.
    """
    tokens = tokenizer.encode(text, add_special_tokens=False)
    found = decode_ends(tokenizer, tokens)
    if found.text == text:
        return found
    if not tokenizer.is_fast:
        raise RecipeError(
            f"the teacher's tokenizer ({tokenizer.name_or_path or 'without a name'}) makes {found.text[:40]!r} of "
            f"{text[:40]!r}, and has no offsets; allowed: a fast tokenizer, or one that gives back what it is given"
        )
    # As of one that has no token for a character, or writes all in lower case.
    offsets: list[tuple[int, int]] = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]  # pyright: ignore[reportAssignmentType]
    ends, complete = [], 0
    for index, (_, end) in enumerate(offsets):
        # Several tokens of one character have the same offsets.
        if index + 1 == len(offsets) or offsets[index + 1][0] >= end:
            complete = max(complete, end)
        ends.append(complete)
    return Ends(text, tokens, ends)


def align(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Return the span of each token of both, -1 behind the last, and the number of spans.

    A span ends wherever a token of both ends; so it is at least one token of each, and as few as can be.

    >>> align([2, 5, 6], [1, 2, 6])
    ([0, 1, 1], [0, 0, 1], 2)
    """
    boundaries = sorted((set(student_ends) & set(teacher_ends)) - {0})
    return _spans(student_ends, boundaries), _spans(teacher_ends, boundaries), len(boundaries)


def _spans(ends: Sequence[int], boundaries: list[int]) -> list[int]:
    # A token begins where the one before it has ended; so one that completes nothing is of the span that it begins.
    spans = [bisect_right(boundaries, start) for start in (0, *ends[:-1])]
    return [span if span < len(boundaries) else -1 for span in spans][: len(ends)]
