"""A completion as reasoning and answer: `<think>…</think>` parted from what follows, at once or while it streams.

A model reasons between the tags and answers behind them. Some templates write the opening tag themselves, as the end of
the prompt, so that the completion begins inside.
"""

from typing import Literal, NamedTuple

THINK, END_THINK = "<think>", "</think>"


class Completion(NamedTuple):
    """What a model said: its reasoning ("" where there is none) and its answer, without tags and blank space around."""

    reasoning: str
    answer: str


class Piece(NamedTuple):
    """Some text of a completion, and which of the two it belongs to."""

    kind: Literal["reasoning", "answer"]
    text: str


def opens_reasoning(prompt: str) -> bool:
    """Return whether a prompt ends in the tag that opens reasoning, so that the completion begins inside."""
    return prompt.rstrip().endswith(THINK)


def parse(completion: str, opened: bool = False) -> Completion:
    """Return the reasoning and the answer of a completion; `opened` where the prompt has opened the reasoning.

    Reasoning begins with `<think>` at the start of the completion (blank space aside) or with the completion itself
    where it is `opened`, and ends with the first `</think>`; where that never comes, all is reasoning and the answer is
    "". A completion that opens none, but has a `</think>`, is read as if it were opened: some models are served with
    the tag in the prompt, and what they wrote is then stored without it. Tags elsewhere are text like any other.

    >>> parse("<think>2 and 2.</think>4")
    Completion(reasoning='2 and 2.', answer='4')
    >>> parse("2 and 2.</think>4", opened=True)
    Completion(reasoning='2 and 2.', answer='4')
    >>> parse("4")
    Completion(reasoning='', answer='4')
    """
    inside = _without_opening(completion)
    if inside is None and not opened and END_THINK not in completion:
        return Completion("", completion.strip())
    reasoning, _, answer = (completion if inside is None else inside).partition(END_THINK)
    return Completion(reasoning.strip(), answer.strip())


def is_well_formed(completion: str, opened: bool = False) -> bool:
    """Return whether a completion is some reasoning, then some answer, with each tag once and in its place.

    The reasoning may be blank, as of a model that chose not to think; the answer may not. Nothing but blank space
    stands before the opening tag, which is the prompt's where `opened`.
    """
    if opened:
        if THINK in completion:
            return False
        inside = completion
    else:
        inside = _without_opening(completion)
    if inside is None or THINK in inside or inside.count(END_THINK) != 1:
        return False
    return bool(inside.partition(END_THINK)[2].strip())


class ReasoningStream:
    """Parts a completion while it arrives, in pieces of any size that may cut a tag anywhere.

    All that is fed comes out once and in order, less the tags and the blank space around reasoning and answer: the
    texts of each kind, joined, are what `parse` makes of the whole. Held back is only what may yet be a tag, or blank
    space at an end. One difference cannot be helped: a `</think>` that nothing has opened is not foreseen, so what
    precedes it has come out as the answer, and the tag stays text of it.
    """

    def __init__(self, opened: bool = False):
        self._pending = ""
        self._kind: Literal["reasoning", "answer"] | None = "reasoning" if opened else None
        # The tag may be the first text; also where the prompt has it, and the model writes it once more.
        self._may_open = True
        # Whether any text of this kind has come out: blank space before it has not.
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain once `text` has arrived."""
        self._pending += text
        if self._may_open and not self._open():
            return []
        pieces: list[Piece] = []
        if self._kind == "reasoning":
            reasoning, tag, answer = self._pending.partition(END_THINK)
            if not tag:
                return self._emit(len(reasoning) - _length_of_tag_begun(reasoning, END_THINK))
            self._pending = reasoning
            pieces = self._emit(len(reasoning))
            self._kind, self._pending, self._begun = "answer", answer, False
        return pieces + self._emit(len(self._pending))

    def close(self) -> list[Piece]:
        """Return what was held back, now that nothing more arrives."""
        self._kind, self._may_open = self._kind or "answer", False
        return self._emit(len(self._pending))

    def _open(self) -> bool:
        """Drop the opening tag if it is there; return False as long as it may yet be."""
        text = self._pending.lstrip()
        if len(text) < len(THINK) and THINK.startswith(text):
            return False
        self._may_open = False
        if text.startswith(THINK):
            self._kind, self._pending = "reasoning", text.removeprefix(THINK)
        self._kind = self._kind or "answer"
        return True

    def _emit(self, number: int) -> list[Piece]:
        """Let go of the first `number` characters, less blank space at their end, and before the first text."""
        assert self._kind is not None
        text = self._pending[:number].rstrip()
        self._pending = self._pending[len(text) :]
        if not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        return [Piece(self._kind, text)] if text else []


def _without_opening(completion: str) -> str | None:
    text = completion.lstrip()
    return text.removeprefix(THINK) if text.startswith(THINK) else None


def _length_of_tag_begun(text: str, tag: str) -> int:
    """Return how many characters at the end of `text` are the first of `tag`."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
