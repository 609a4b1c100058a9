"""The split by content: shares, stability, and that nothing said twice is on both sides."""

import random

import pytest

from seeklet.finetune.data.rows import Message
from seeklet.finetune.data.split import is_held_out, split_key


def chat(*texts: str, system: str | None = None) -> list[Message]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_the_share_is_met(share: float) -> None:
    number = 20_000
    held_out = sum(is_held_out(chat(f"question {i}", "answer"), share) for i in range(number))
    # Four standard deviations of a fair draw.
    assert abs(held_out - share * number) < 4 * (number * share * (1 - share)) ** 0.5


def test_nothing_and_nearly_all() -> None:
    assert not any(is_held_out(chat(f"question {i}", "answer"), 0.0) for i in range(100))
    assert sum(is_held_out(chat(f"question {i}", "answer"), 0.999) for i in range(100)) > 95


def test_the_side_is_pinned() -> None:
    """Another release, machine or run is to hold out the same rows: these numbers must not change."""
    assert split_key(chat("Where is my parcel?", "On its way.")) == 8_054_844_330_558_887_022
    assert [i for i in range(60) if is_held_out(chat(f"question {i}", "answer"), 0.1)] == [12, 45, 46, 51, 53]


def test_the_side_depends_on_nothing_else() -> None:
    rows = [chat(f"question {i}", "answer") for i in range(500)]
    before = {row[0]["content"]: is_held_out(row, 0.1) for row in rows}
    random.Random(1).shuffle(rows)
    assert {row[0]["content"]: is_held_out(row, 0.1) for row in rows[:250]}.items() <= before.items()


def test_a_greater_share_holds_out_more_of_the_same() -> None:
    rows = [chat(f"question {i}", "answer") for i in range(2_000)]
    sides = [{row[0]["content"] for row in rows if is_held_out(row, share)} for share in (0.02, 0.1, 0.3)]
    assert sides[0] < sides[1] < sides[2]


def test_what_says_the_same_is_on_the_same_side() -> None:
    key = split_key(chat("Where is my parcel?", "On its way."))
    for same in (
        chat("where  is my parcel? ", "On its way."),
        chat("Where is my parcel?", "It was lost."),
        chat("Where is my parcel?", "On its way.", system="Be brief."),
        chat("Where is my parcel?"),
    ):
        assert split_key(same) == key
    for other in (
        chat("Where is my letter?", "On its way."),
        chat("Where is my parcel?", "On its way.", "Thanks", "Welcome"),
    ):
        assert split_key(other) != key


def test_conversations_that_open_alike_are_split_by_what_follows() -> None:
    keys = {split_key(chat("Hi", "How can I help?", f"question {i}", "answer")) for i in range(50)}
    assert len(keys) == 50
