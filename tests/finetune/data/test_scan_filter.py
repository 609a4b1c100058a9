"""The filter over many rows against the one over a single row: it may let no row pass that the scan would look at."""

import random

from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.scan import is_clean
from seeklet.finetune.data.scan_filter import suspicious
from tests.finetune.data.test_scan import SECRETS

PLAIN = ["Where is my parcel?", "It will be there on Monday.", "", "Größe, naïve, 你好 – привет", "12 and 34-56", "?"]
PIECES = [
    "pass",
    "PwD",
    "Kennwort",
    "CONTRASE",
    "pas",
    "s",
    "@",
    "x" * 15,
    "a.b/c_d-e=f:g~h+i",
    "123",
    "45.6",
    " ",
    "7-8",
]


def row(*texts: str, **more: object) -> Row:
    messages: list[dict[str, object]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    messages[-1] |= more
    return Row(messages, None, Source("a", 1))


def unclean(rows: list[Row]) -> list[int]:
    return [index for index, one in enumerate(rows) if not is_clean(one)]


def test_rows_with_secrets_wherever_they_stand() -> None:
    secrets = [secret for all_ in SECRETS.values() for secret in all_]
    for secret in secrets:
        clean = row(*PLAIN)
        rows = [row(secret), clean, row("a", secret), clean, clean, row("a", "b", reasoning_content=secret), clean]
        calls = [{"function": {"name": "find", "arguments": {"key": [secret]}}}]
        rows += [row("a", "b", tool_calls=calls), clean._replace(tools=[{"name": secret}]), row(secret)]
        assert suspicious(rows) == unclean(rows) == [0, 2, 5, 7, 8, 9]


def test_whatever_texts_are_made_of() -> None:
    rng = random.Random(0)
    told = 0
    for _ in range(300):
        rows = [
            row("".join(rng.choices(PLAIN + PIECES, k=rng.randrange(1, 12))), "ok") for _ in range(rng.randrange(20))
        ]
        found = suspicious(rows)
        assert set(unclean(rows)) <= set(found)
        told += len(found) - len(unclean(rows))
    # It lets few more through than are looked at: dates, which have too few digits.
    assert told < 100


def test_texts_do_not_run_together() -> None:
    assert suspicious([row("pa"), row("ss"), row("12345"), row("67890"), row("x" * 15), row("x" * 15)]) == []
    assert suspicious([]) == []
