"""Each shape turned into messages, by hand-made rows; and shapes told from keys."""

import pytest

from seeklet.finetune.data.field_names import in_file
from seeklet.finetune.data.formats import Draft, convert
from seeklet.finetune.data.layouts import Layout, Layouts
from seeklet.finetune.errors import DataError

USER = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "Here."}
SYSTEM = {"role": "system", "content": "Be brief."}


def draft(row: dict, shape: str = "auto", columns: dict[str, str] | None = None) -> Draft:
    layout = Layouts(shape, columns).of(tuple(row))
    assert layout.flaws == ()
    return convert(layout.shape, layout.columns, row)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, USER, ANSWER], "id": 7}, [SYSTEM, USER, ANSWER]),
        ({"prompt": "Where?", "completion": "Here."}, [USER, ANSWER]),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
        ({"prompt": "Where?", "response": "Here."}, [USER, ANSWER]),
        ({"instruction": "Where?", "input": "", "output": "Here."}, [USER, ANSWER]),
        (
            {"instruction": "Sum up.", "input": "A long call.", "output": "A call."},
            [{"role": "user", "content": "Sum up.\n\nA long call."}, {"role": "assistant", "content": "A call."}],
        ),
        ({"instruction": "Where?", "context": None, "response": "Here.", "category": "qa"}, [USER, ANSWER]),
        ({"question": "Where?", "answer": "Here.", "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        ({"Question": "Where?", "Answer": "Here.", "System": ""}, [USER, ANSWER]),
        (
            {"question": "Where?", "context": "In the hall.", "answer": "There."},
            [{"role": "user", "content": "In the hall.\n\nWhere?"}, {"role": "assistant", "content": "There."}],
        ),
        (
            {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
            [USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "user", "value": "Where?"}, ANSWER], "system": "Be brief."},
            [SYSTEM, USER, ANSWER],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Where?"},
                    {"from": "function_call", "value": '{"name": "find", "arguments": {"id": 1}}'},
                    {"from": "observation", "value": "hall"},
                    {"from": "gpt", "value": "Here."},
                ]
            },
            [
                SYSTEM,
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{"name": "find", "arguments": {"id": 1}}]},
                {"role": "tool", "content": "hall"},
                ANSWER,
            ],
        ),
        # The cell of a table.
        ({"messages": '[{"role": "user", "content": "Where?"}]'}, [USER]),
    ],
)
def test_a_shape_is_found_and_converted(row: dict, messages: list[dict]) -> None:
    assert draft(row).messages == messages


def test_own_names_of_columns() -> None:
    row = {"Frage": "Where?", "Antwort": "Here.", "question": "not this one"}
    assert draft(row, columns={"question": "Frage", "answer": "Antwort"}).messages == [USER, ANSWER]
    assert draft({"Task": "Where?", "output": "Here."}, columns={"instruction": "Task"}).messages == [USER, ANSWER]


def test_a_shape_that_is_asked_for_wins() -> None:
    row = {"messages": [USER], "prompt": "Where?", "completion": "Here."}
    assert draft(row).messages == [USER]
    assert draft(row, "prompt_completion").messages == [USER, ANSWER]


def test_tools_come_along_also_as_text() -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    assert draft({"messages": [USER], "tools": tools}).tools == tools
    assert draft({"messages": [USER], "tools": '[{"type": "function", "function": {"name": "find"}}]'}).tools == tools


@pytest.mark.parametrize(
    ("row", "index", "key", "name"),
    [
        ({"messages": [USER]}, 2, "role", "messages[2].role"),
        ({"messages": [USER]}, 2, "", "messages[2]"),
        ({"conversations": [{"from": "human"}]}, 0, "role", "conversations[0].from"),
        ({"conversations": [{"from": "human"}]}, 0, "content", "conversations[0].value"),
        ({"conversations": [{"from": "human"}], "system": "x"}, 1, "content", "conversations[0].value"),
        ({"conversations": [{"from": "human"}], "system": "x"}, 0, "content", "system"),
        ({"Q": "Where?", "A": "Here."}, 0, "content", "Q"),
        ({"Q": "Where?", "A": "Here."}, 1, "content", "A"),
        ({"instruction": "a", "input": "b", "output": "c"}, 0, "content", "instruction and input"),
        ({"instruction": "a", "input": 5, "output": "c"}, 0, "content", "input"),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, 1, "role", "prompt[1].role"),
        ({"prompt": [SYSTEM, USER], "completion": "Here."}, 2, "content", "completion"),
    ],
)
def test_a_part_is_named_as_the_file_spells_it(row: dict, index: int, key: str, name: str) -> None:
    assert draft(row).field(index, key) == name


@pytest.mark.parametrize(
    ("shape", "columns", "roles", "field", "name"),
    [
        ("messages", {"messages": "chat"}, ("user", "assistant"), "messages[1].content", "chat[1].content"),
        ("question_answer", {"question": "Q", "answer": "A"}, ("user", "assistant"), "messages[1].content", "A"),
        ("alpaca", {"instruction": "i", "input": "x", "output": "o"}, ("user",), "messages[0].content", "x and i"),
        ("sharegpt", {"conversations": "c"}, ("user",), "messages[0].content", "c[0].value"),
        ("sharegpt", {"conversations": "c", "system": "s"}, ("system", "user"), "messages[1].content", "c[0].value"),
        ("sharegpt", {"conversations": "c", "system": "s"}, ("system", "user"), "messages[0].content", "s"),
        ("prompt_completion", {"prompt": "p", "completion": "q"}, ("user", "assistant"), "messages[1].content", "q"),
        ("messages", {"messages": "messages", "tools": "t"}, ("user",), "tools", "t"),
    ],
)
def test_a_part_of_a_row_already_converted(shape: str, columns: dict, roles: tuple, field: str, name: str) -> None:
    assert in_file(shape, columns, roles, field) in (name, " and ".join(reversed(name.split(" and "))))


def test_what_is_not_read_is_known() -> None:
    assert Layouts().of(("id", "question", "answer", "source")) == Layout(
        "question_answer", {"question": "question", "answer": "answer"}, ("id", "source")
    )


@pytest.mark.parametrize(
    ("shape", "columns", "words"),
    [
        ("chatml", {}, 'format is "chatml"; allowed: auto, messages, sharegpt'),
        ("alpaca", {"question": "Q"}, '"question" is no column of alpaca; allowed: instruction, input, output, system'),
        ("auto", {"question": "Q", "prompt": "P"}, '"question", "prompt" are not columns of one shape'),
    ],
)
def test_columns_that_no_shape_has_are_refused(shape: str, columns: dict[str, str], words: str) -> None:
    with pytest.raises(DataError) as error:
        Layouts(shape, columns)
    assert words in str(error.value)
