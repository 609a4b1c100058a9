"""Reasoning and answer parted: by hand, and while the text arrives in every way it can be cut."""

from itertools import product
from random import Random

import pytest

from seeklet.finetune.reasoning import Completion, Piece, ReasoningStream, is_well_formed, opens_reasoning, parse

# Completion, whether the prompt has opened the reasoning, reasoning, answer, whether it is well-formed.
CASES = [
    ("<think>\n2 and 2.\n</think>\n\n4", False, "2 and 2.", "4", True),
    ("2 and 2.\n</think>\n\n4", True, "2 and 2.", "4", True),
    ("  \n<think>a</think>b", False, "a", "b", True),
    # No thinking, as Qwen3's template writes it; and as R1's does behind its opening tag.
    ("<think>\n\n</think>\n\n4", False, "", "4", True),
    ("</think>\n\n4", True, "", "4", True),
    ("4", False, "", "4", False),
    ("", False, "", "", False),
    (" \n", True, "", "", False),
    # Cut off before the end.
    ("<think>2 and", False, "2 and", "", False),
    ("2 and", True, "2 and", "", False),
    ("<think>2 and</thi", False, "2 and</thi", "", False),
    ("<thi", False, "", "<thi", False),
    ("<think>a</think> \n", False, "a", "", False),
    # The prompt has the tag, and the model writes it again.
    ("<think>a</think>b", True, "a", "b", False),
    # Tags in the wrong place are text.
    ("So: <think>a", False, "", "So: <think>a", False),
    ("<think>a<think>b</think>c", False, "a<think>b", "c", False),
    ("<think>a</think>b</think>c", False, "a", "b</think>c", False),
    ("<think>a</think>b<think>c</think>d", False, "a", "b<think>c</think>d", False),
    ("<thinking>a</thinking>b", False, "", "<thinking>a</thinking>b", False),
    ("<Think>a</Think>b", False, "", "<Think>a</Think>b", False),
    ("<think>x < y </ think>\n</think>a  \n\n b  ", False, "x < y </ think>", "a  \n\n b", True),
    ("<think>漢字🙂</think>é", False, "漢字🙂", "é", True),
]
# Stored without the tag that the prompt had.
UNOPENED = [
    ("2 and 2.\n</think>\n\n4", "2 and 2.", "4"),
    ("So: <think>a</think>b", "So: <think>a", "b"),
]


@pytest.mark.parametrize(("completion", "opened", "reasoning", "answer", "well_formed"), CASES)
def test_a_completion_is_parted(completion: str, opened: bool, reasoning: str, answer: str, well_formed: bool) -> None:
    assert parse(completion, opened) == Completion(reasoning, answer)
    assert is_well_formed(completion, opened) == well_formed


@pytest.mark.parametrize(("completion", "reasoning", "answer"), UNOPENED)
def test_reasoning_that_only_ends_was_opened_by_the_prompt(completion: str, reasoning: str, answer: str) -> None:
    assert parse(completion) == Completion(reasoning, answer)
    assert not is_well_formed(completion)


def streamed(pieces: list[str], opened: bool) -> Completion:
    stream = ReasoningStream(opened)
    came = [piece for text in pieces for piece in stream.feed(text)] + stream.close()
    assert all(piece.text for piece in came)
    kinds = [piece.kind for piece in came]
    assert kinds == sorted(kinds, reverse=True), "an answer before its reasoning"
    return Completion(*("".join(text for kind, text in came if kind == wanted) for wanted in ("reasoning", "answer")))


@pytest.mark.parametrize(("completion", "opened", "reasoning", "answer", "well_formed"), CASES)
def test_a_stream_gives_the_same_however_it_is_cut(
    completion: str, opened: bool, reasoning: str, answer: str, well_formed: bool
) -> None:
    expected = Completion(reasoning, answer)
    assert streamed([completion], opened) == expected
    assert streamed(list(completion), opened) == expected
    for cut in range(len(completion) + 1):
        assert streamed([completion[:cut], completion[cut:]], opened) == expected


def test_random_texts_of_tags_stream_as_they_parse() -> None:
    """Over 4,000 texts of tags, halves of tags, space and letters, cut at random."""
    random = Random(0)
    parts = ["<think>", "</think>", "<thi", "</", "<", "think>", " ", "\n\n", "a", "b c"]
    compared = 0
    for length, opened in product(range(1, 9), (False, True)):
        for _ in range(300):
            completion = "".join(random.choices(parts, k=length))
            opens = opened or completion.lstrip().startswith("<think>")
            if not opens and "</think>" in completion:
                continue
            cuts = sorted(random.choices(range(len(completion) + 1), k=3))
            pieces = [completion[a:b] for a, b in zip([0, *cuts], [*cuts, len(completion)], strict=True)]
            assert streamed(pieces, opened) == parse(completion, opened), (completion, pieces, opened)
            compared += 1
    assert compared > 4000


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    stream = ReasoningStream()
    assert stream.feed("<think>\n2 <") == [Piece("reasoning", "2")]
    assert stream.feed(" 3") == [Piece("reasoning", " < 3")]
    assert stream.feed(" </thin") == []
    assert stream.feed("gs") == [Piece("reasoning", " </things")]
    assert stream.feed(".\n</think>\n\n4 ") == [Piece("reasoning", "."), Piece("answer", "4")]
    assert stream.feed("</") == [Piece("answer", " </")]
    assert stream.close() == []


def test_a_stream_cannot_take_back_what_it_gave() -> None:
    assert streamed(["a", "b</think>c"], opened=False) == Completion("", "ab</think>c")


def test_long_reasoning_streams_in_linear_time() -> None:
    """A million characters in pieces of four; every piece is looked at a few times, not the whole text."""
    stream = ReasoningStream(opened=True)
    total = sum(len(piece.text) for _ in range(250_000) for piece in stream.feed("abc "))
    assert total == 4 * 250_000 - 1


@pytest.mark.parametrize(
    ("prompt", "opens"), [("<｜Assistant｜><think>\n", True), ("<think></think>", False), ("", False)]
)
def test_the_prompt_says_whether_reasoning_is_open(prompt: str, opens: bool) -> None:
    assert opens_reasoning(prompt) == opens
