"""Spans that end in two tokenizations: by hand, against TRL's, and with real tokenizers of every kind."""

import random

import pytest
from trl.experimental.gold.gold_trainer import ULDLoss

from seeklet.finetune.distill.text_alignment import align, decode_ends, encode_ends
from seeklet.finetune.errors import RecipeError
from tests.finetune.distill.tokenizers_of_kinds import KINDS, lower_case

TEXTS = {
    "sums": "3+4=7; 7-2=5",
    "reasoning": "<think>\nSo 12 + 30 = 42, the sum is 42.\n</think>\n\n42",
    "spaces": "  the sum\n\n\n   of  it ",
    "other scripts": "Grüße, 你好 мир 🙂👩‍👩‍👧 ok",
}


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([2, 5, 6], [1, 2, 6], ([0, 1, 1], [0, 0, 1], 2)),
        ([3], [1, 2, 3], ([0], [0, 0, 0], 1)),
        # No token of one ends where one of the other does, but at the end.
        ([2, 4, 6], [1, 3, 5, 6], ([0, 0, 0], [0, 0, 0, 0], 1)),
        # A character of three bytes, of which the student's first token has one and the teacher's two.
        ([1, 1, 2], [1, 1, 2], ([0, 1, 1], [0, 1, 1], 2)),
        # The student was cut off inside of one.
        ([1, 2, 2], [2], ([0, 0, -1], [0], 1)),
        # What is cut off behind the last common end belongs to no span.
        ([2, 4], [2], ([0, -1], [0], 1)),
        ([], [], ([], [], 0)),
        ([1, 2], [], ([-1, -1], [], 0)),
    ],
)
def test_by_hand(student: list[int], teacher: list[int], expected: tuple[list[int], list[int], int]) -> None:
    assert align(student, teacher) == expected


def test_against_trl() -> None:
    draw = random.Random(3)
    for _ in range(200):
        length = draw.randint(1, 30)
        ends = [[*sorted(draw.sample(range(1, length), draw.randint(0, length - 1))), length] for _ in range(2)]
        offsets = [[(start, end) for start, end in zip([0, *each[:-1]], each, strict=True)] for each in ends]
        student, teacher = ULDLoss._align_by_byte_offsets(*offsets)
        ours = align(*ends)
        assert ours[2] == len(student) == len(teacher)
        for spans, groups in zip(ours[:2], (student, teacher), strict=True):
            assert [[i for i, span in enumerate(spans) if span == k] for k in range(ours[2])] == groups


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_ends_where_its_text_does(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    found = encode_ends(tokenizer, text)
    assert found.tokens == tokenizer.encode(text, add_special_tokens=False)
    assert found.text == text and found.ends[-1] == len(text)
    assert found.ends == sorted(found.ends)
    if tokenizer.decode(found.tokens) != text:
        return
    # A prefix of the tokens has the text up to its end, and of a character that is not complete nothing.
    for number, end in enumerate(found.ends, start=1):
        decoded = tokenizer.decode(found.tokens[:number], clean_up_tokenization_spaces=False)
        if kind == "byte fallback" and decoded.endswith("\N{REPLACEMENT CHARACTER}"):
            # Its decoder gives up whole characters, too, in front of one that is not complete.
            continue
        assert decoded.rstrip("\N{REPLACEMENT CHARACTER}") == text[:end], number


@pytest.mark.parametrize("kind", ["deepseek", "smollm2", "bytes", "byte fallback"])
def test_what_is_cut_off_inside_a_character_is_no_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokenizer.encode("the 𓂀", add_special_tokens=False)
    for cut in range(1, len(tokens)):
        found = decode_ends(tokenizer, tokens[:cut])
        assert "the ".startswith(found.text) and found.ends[-1] == len(found.text)
    assert decode_ends(tokenizer, tokens).text == "the 𓂀"


def spans_of(student: str, teacher: str, text: str) -> list[tuple[str, int, int]]:
    """Return the text of each span, and of how many tokens of both it is."""
    read = decode_ends(KINDS[student](), KINDS[student]().encode(text, add_special_tokens=False))
    scored = encode_ends(KINDS[teacher](), read.text)
    spans, theirs, number = align(read.ends, scored.ends)
    made, start = [], 0
    for k in range(number):
        end = max(end for end, span in zip(read.ends, spans, strict=True) if span == k)
        assert end == max(end for end, span in zip(scored.ends, theirs, strict=True) if span == k)
        made.append((read.text[start:end], spans.count(k), theirs.count(k)))
        start = end
    assert start == len(read.text) and -1 not in spans and -1 not in theirs
    return made


def test_deepseek_and_smollm2() -> None:
    assert spans_of("smollm2", "deepseek", "<think>So 12 + 304 is fine.</think>") == [
        # One token of DeepSeek's, several of SmolLM2's; numbers digit by digit against three at a time.
        ("<think>", 3, 1),
        ("So", 1, 1),
        (" ", 1, 1),
        ("12", 2, 1),
        (" +", 1, 1),
        (" ", 1, 1),
        ("304", 3, 1),
        (" is", 1, 1),
        (" fine", 1, 1),
        (".", 1, 1),
        ("</think>", 3, 1),
    ]


def test_characters_and_deepseek() -> None:
    assert spans_of("deepseek", "characters", "<think>12+304=316</think>") == [
        ("<think>", 1, 1),
        ("12", 1, 2),
        ("+", 1, 1),
        ("304", 1, 3),
        ("=", 1, 1),
        ("316", 1, 3),
        ("</think>", 1, 1),
    ]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    ("student", "teacher"), [("deepseek", "byte fallback"), ("smollm2", "unigram"), ("bytes", "deepseek")]
)
def test_nothing_is_left_over(student: str, teacher: str, text: str) -> None:
    assert "".join(span for span, _, _ in spans_of(student, teacher, text)) == text


def test_a_tokenizer_that_changes_the_text_says_where_its_tokens_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = lower_case()
    found = encode_ends(tokenizer, "The Sum IS 42.")
    assert tokenizer.decode(found.tokens) != "The Sum IS 42."
    assert found.ends == sorted(found.ends) and found.ends[-1] == 14 and {3, 7, 10} <= set(found.ends)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    tokenizer.name_or_path = "org/teacher"
    with pytest.raises(RecipeError, match=r"\(org/teacher\) makes 'the  sum  is  42.' of 'The Sum IS 42.', and has no"):
        encode_ends(tokenizer, "The Sum IS 42.")
