import pytest

from seeklet.finetune.data.problems import Flaw, Problem, ProblemList
from seeklet.finetune.data.rows import Source
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.errors import DataError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": ()}, "data.train is empty; allowed: at least one file or hub:owner/name"),
        ({"validation": 1.0}, "data.validation is 1.0; allowed: files, or a share from 0 to below 1"),
        ({"validation": -0.1}, "data.validation is -0.1"),
        ({"max_tokens": 1}, "data.max_tokens is 1; allowed: 2 or more"),
        ({"on_long": "cut"}, 'data.on_long is "cut"; allowed: error, skip, truncate'),
        ({"format": "chatml"}, 'data.format is "chatml"; allowed: auto, messages, prompt_completion, sharegpt'),
    ],
)
def test_settings_outside_what_is_allowed(values: dict, words: str) -> None:
    with pytest.raises(DataError) as error:
        DataSettings(**{"train": ("a.jsonl",), **values})
    assert words in str(error.value)


def test_a_source_reads_as_editors_take_it() -> None:
    assert str(Source("support.jsonl", 412)) == "support.jsonl:412"
    assert str(Source("support.jsonl")) == "support.jsonl"
    # A name must not write to the terminal.
    assert str(Source("a\x1b[2J.csv", 3)) == r"a\x1b[2J.csv:3"


def test_a_problem_reads_as_a_sentence() -> None:
    flaw = Flaw("messages[2].role", 'is "agent"; allowed: user', "unknown-role")
    assert str(flaw.at(Source("a.jsonl", 4))) == 'a.jsonl:4: messages[2].role is "agent"; allowed: user'
    assert str(Problem(Source("a.jsonl"), "", "is empty", "error", "empty-file")) == "a.jsonl: is empty"


def test_a_list_keeps_the_first_of_each_kind_and_counts_all() -> None:
    problems = ProblemList(per_kind=2)
    for line in range(1, 6):
        problems.add(Problem(Source("a", line), "", "bad", "error", "bad-json", raw="{" * 1000))
    problems.add(Problem(Source("a", 9), "", "odd", "warning", "crlf"))
    problems.add(Problem(Source("a", 10), "", "same", "error", "duplicate"))
    same = [Problem(Source("a", line), "", "same", "warning", "near-duplicate") for line in (11, 12, 13)]
    problems.add_counted("warning", "near-duplicate", 1000, same)
    problems.add_counted("error", "leak", 0, [])
    kinds = [
        (severity, kind, number, [p.source.line for p in kept]) for severity, kind, number, kept in problems.kinds()
    ]
    assert kinds == [
        ("error", "bad-json", 5, [1, 2]),
        ("error", "duplicate", 1, [10]),
        ("warning", "crlf", 1, [9]),
        ("warning", "near-duplicate", 1000, [11, 12]),
    ]
    assert (problems.count("error"), problems.count("warning")) == (6, 1001)
    # Rows of megabytes are not kept.
    assert all(problem.raw == "" for _, _, _, kept in problems.kinds() for problem in kept)
