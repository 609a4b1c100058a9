"""Repeated and nearly repeated rows against plain Python on the same data."""

import random
import unicodedata

import numpy as np
import pytest

from seeklet.finetune.data.duplicates import RepeatFinder
from seeklet.finetune.data.fingerprint import fingerprint, plain_contents, plain_conversation
from seeklet.finetune.data.near_duplicates import NearDuplicateFinder, minhash

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def plain(*texts: str) -> bytes:
    return contents(chat(*texts))


def contents(messages: list) -> bytes:
    return plain_contents(messages, plain_conversation(messages))


def same(one: list, other: list) -> bool:
    return fingerprint(one) == fingerprint(other)


def test_case_space_and_unicode_form_do_not_count() -> None:
    row = chat("Where is it?", "Über there.")
    assert same(row, chat(" where  is\tIT?\n", "ÜBER there."))
    assert same(row, chat("Where is it?", unicodedata.normalize("NFD", "Über there.")))
    assert same(row, chat("Where is\u00a0it?", "Über there."))


def test_who_says_what_in_which_order_counts() -> None:
    row = chat("Where?", "Here.")
    assert not same(row, chat("Here.", "Where?"))
    assert not same(row, chat("Where?", "Here"))
    assert not same(row, chat("Where?", "Here.", "Where?", "Here."))
    assert not same(row, [{"role": "system", "content": "Where?"}, row[1]])
    assert not same(chat("ab", "c"), chat("a", "bc"))
    called = [{"function": {"name": "find", "arguments": {"a": 1, "b": 2}}}]
    turned = [{"function": {"arguments": {"b": 2, "a": 1}, "name": "find"}}]
    other = [{"function": {"name": "find", "arguments": {"a": 1, "b": 3}}}]
    assert not same(row, [row[0], row[1] | {"reasoning_content": "Hm."}])
    assert not same(row, [row[0], row[1] | {"tool_calls": called}])
    assert same([row[0], row[1] | {"tool_calls": called}], [row[0], row[1] | {"tool_calls": turned}])
    assert not same([row[0], row[1] | {"tool_calls": called}], [row[0], row[1] | {"tool_calls": other}])


def test_a_fingerprint_is_the_same_everywhere() -> None:
    # Splits and side files depend on it.
    assert fingerprint(chat("Where is it?", "Über there.")) == 6461129620018063838


@pytest.mark.parametrize("held_keys", [7, 100, 1 << 20])
@pytest.mark.parametrize("distinct", [1, 30, 1 << 64])
def test_repeats_are_those_of_a_dictionary(held_keys: int, distinct: int) -> None:
    rng = random.Random(held_keys)
    finder = RepeatFinder(held_keys)
    first: dict[int, int] = {}
    expected = []
    step = (1 << 64) // distinct
    for place in range(5, 1000):
        key = rng.randrange(distinct) * step
        finder.add(key, place)
        if first.setdefault(key, place) != place:
            expected.append((first[key], place))
    found = [
        pair
        for repeats in finder.repeats()
        for pair in zip(repeats.first.tolist(), repeats.later.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_no_keys_no_repeats() -> None:
    assert list(RepeatFinder().repeats()) == []


def test_minhash_estimates_the_share_of_common_pieces() -> None:
    rng = random.Random(0)
    errors = []
    for changed in (0, 2, 5, 10, 20, 60):
        words = [rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(100)]
        other = list(words)
        for i in rng.sample(range(100), changed):
            other[i] = rng.choice(WORDS) + str(rng.randrange(1000))
        texts = ["".join(words).encode(), "".join(other).encode()]
        pieces = [{text[i : i + 8] for i in range(len(text) - 7)} for text in texts]
        jaccard = len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])
        hashes = minhash(texts)
        errors.append(np.mean(hashes[0] == hashes[1]) - jaccard)
    # Four standard errors of an estimate from 128 numbers.
    assert np.abs(errors).max() < 4 * 0.5 / np.sqrt(128)
    assert errors[0] == 0


def test_minhash_of_a_text_does_not_depend_on_its_neighbours() -> None:
    texts = [b"the quick brown fox", b"jumps over", b"12345678", b"the quick brown fox jumps over the lazy dog"]
    together = minhash(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(minhash([text])[0], row)


def test_near_duplicates_are_found_and_others_are_not() -> None:
    rng = random.Random(1)
    rows = [" ".join(rng.choice(WORDS) + str(rng.randrange(500)) for _ in range(70)) for _ in range(2000)]
    for i in range(100):
        words = rows[i].split()
        words[rng.randrange(70)] = "changed"
        rows[1000 + i] = " ".join(words)
    # The same words in another order, and half of the words: related, not the same.
    rows[1500] = " ".join(sorted(rows[200].split()))
    rows[1501] = " ".join(rows[201].split()[:35] + rows[202].split()[35:])
    finder = NearDuplicateFinder()
    for place, row in enumerate(rows):
        finder.add(plain(row, "Done."), place, fingerprint(chat(row)))
    repeats = finder.repeats()
    found = sorted(zip(repeats.first.tolist(), repeats.later.tolist(), strict=True))
    assert found == [(i, 1000 + i) for i in range(100)]


def test_many_copies_of_one_text_are_each_found_once_and_exact_ones_not_at_all() -> None:
    text = " ".join(WORDS) * 4
    finder = NearDuplicateFinder()
    for place in range(3000):
        finder.add(plain(f"{text} {place % 1000}"), place, place % 1000)
    repeats = finder.repeats()
    assert repeats.later.tolist() == list(range(1, 1000))
    assert len(set(repeats.first.tolist())) < 1000


def test_contents_are_all_that_is_said_but_by_the_system() -> None:
    turns = chat("Where is it?", "Over there.", "Thanks")
    system = {"role": "system", "content": "Be brief."}
    assert contents(turns) == contents([system, *turns]) == b"whereisit?\x1eoverthere.\x1ethanks"
    # What else a message has, and a separator in a text, do not shift them.
    assert contents([system, turns[0], turns[1] | {"reasoning_content": "Hm."}]) == b"whereisit?\x1eoverthere."
    assert contents([system, *chat("a\x1eb", "c")]) == b"a\x1eb\x1ec"


def test_system_turns_and_short_rows_do_not_make_rows_alike() -> None:
    finder = NearDuplicateFinder()
    system = {"role": "system", "content": "You are the support agent of Example Corporation, be brief. " * 10}
    finder.add(
        contents([system, *chat("My parcel has not come, and it is Monday already.", "It will be there today.")]), 1, 1
    )
    finder.add(
        contents([system, *chat("The coffee machine leaks since I have cleaned it.", "Close the lid to the end.")]),
        2,
        2,
    )
    finder.add(plain("Ok?", "Yes."), 3, 3)
    finder.add(plain("Ok?", "Yes!"), 4, 4)
    assert finder.repeats().later.tolist() == []


def test_no_rows_no_near_duplicates() -> None:
    assert NearDuplicateFinder().repeats().later.tolist() == []
