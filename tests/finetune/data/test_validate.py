"""Conversations checked: what passes, what comes out clean, and every flaw of one row at once."""

import pytest

from seeklet.finetune.data import order
from seeklet.finetune.data.formats import convert
from seeklet.finetune.data.text_flaws import special_token_pattern, text_flaws
from seeklet.finetune.data.validate import validate

USER = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "Here."}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"id": 1}}}


def checked(*messages: object, **more: object):
    return validate(
        convert("messages", {"messages": "messages", "tools": "tools"}, {"messages": list(messages), **more})
    )


def kinds(*messages: object) -> list[str]:
    return [flaw.kind for flaw in checked(*messages)[2]]


def test_a_plain_conversation_passes_as_it_is() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER, ANSWER]
    assert checked(*messages) == (messages, None, [])


def test_tools_and_reasoning_pass() -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I have to look."}
    told = {"role": "tool", "content": "hall", "tool_call_id": "c1", "name": "find"}
    messages, found_tools, flaws = checked(USER, asked, told, told, ANSWER, tools=tools)
    assert flaws == []
    assert found_tools == tools
    assert messages == [USER, {**asked, "content": ""}, told, told, ANSWER]


def test_what_tables_fill_with_null_is_left_out() -> None:
    empty = {"tool_calls": None, "name": None, "reasoning_content": None}
    assert checked(USER | empty, ANSWER | empty, tools=None) == ([USER, ANSWER], None, [])


def test_a_flat_call_is_put_in_its_usual_form() -> None:
    messages, _, flaws = checked(USER, {"role": "assistant", "tool_calls": [CALL["function"]], "content": ""})
    assert flaws == [flaw for flaw in flaws if flaw.kind == "ends-without-answer"]
    assert messages[1]["tool_calls"] == [CALL]


def test_text_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Whe"}, {"type": "text", "text": "re?"}]
    assert checked({"role": "user", "content": parts}, ANSWER) == ([USER, ANSWER], None, [])


def test_all_flaws_of_a_row_are_found_at_once() -> None:
    flaws = checked(
        {"role": "system", "content": ""}, ANSWER, {"role": "agent", "content": "Hi"}, USER, USER, 5, {"content": "x"}
    )[2]
    assert [(flaw.field, flaw.kind) for flaw in flaws] == [
        ("messages[0].content", "empty-turn"),
        ("messages[2].role", "unknown-role"),
        ("messages[5]", "wrong-type"),
        ("messages[6]", "missing-key"),
        ("messages[1].role", "role-order"),
        ("messages[4].role", "role-order"),
    ]


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ((USER, ANSWER, USER), ["ends-without-answer"]),
        ((USER, ANSWER | {"weight": 0}), ["unknown-key"]),
        ((USER | {"reasoning_content": "Hm."}, ANSWER), ["misplaced-key"]),
        ((USER, ANSWER | {"tool_call_id": "c1"}), ["misplaced-key"]),
        ((USER, ANSWER | {"name": 3}), ["wrong-type"]),
        ((USER, {"role": "assistant", "content": "", "reasoning_content": "Hm."}), ["empty-turn"]),
        ((USER, ANSWER | {"tool_calls": {"name": "find"}}), ["wrong-type"]),
        ((USER, ANSWER | {"tool_calls": [{"function": {"name": 5}}]}), ["bad-tool-call", "ends-without-answer"]),
        ((USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": [1]}]}), ["bad-tool-call", "ends-without-answer"]),
        (({"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, ANSWER), ["role-order"]),
    ],
)
def test_kinds_of_flaws(messages: tuple, kind: list[str]) -> None:
    assert kinds(*messages) == kind


def test_a_deep_argument_is_refused() -> None:
    deep: dict = {}
    for _ in range(40):
        deep = {"a": deep}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "find", "arguments": deep}]}
    assert kinds(USER, call) == ["bad-tool-call", "ends-without-answer"]


def test_a_row_of_nothing_but_flaws_is_given_up() -> None:
    flaws = checked(*range(1_000_000))[2]
    assert [flaw.kind for flaw in flaws] == ["wrong-type"] * 101 + ["many-problems"]
    assert flaws[-1].message == "has more problems after message 100; after 100 the rest of a row is not checked"


def test_long_conversations_are_not_remembered() -> None:
    before = order._remembered.cache_info().currsize
    assert kinds(*[USER, ANSWER] * 1000) == []
    assert kinds(*[USER, ANSWER] * 1000, ANSWER) == ["role-order"]
    assert order._remembered.cache_info().currsize == before


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("It doesnâ€™t work", ["mojibake"]),
        ("Der SchlÃ¼ssel", ["mojibake"]),
        ("lost \ufffd letters", ["replacement-character"]),
        ("<|im_start|>system\nobey", ["chat-markup"]),
        ("<｜Assistant｜>Sure", ["chat-markup"]),
        ("[INST] hi [/INST]", ["chat-markup"]),
        ("<start_of_turn>user", ["chat-markup"]),
        # None of these are.
        ("a < b and c |> d <| e", []),
        ("Crème brûlée, Ähre, Ângela, Ã", []),
        ("<s>old price</s> in HTML", []),
        ("naïve — “quoted” 你好 🙂", []),
    ],
)
def test_suspicious_text(text: str, kind: list[str]) -> None:
    assert [flaw.kind for flaw in text_flaws(text, "answer")] == kind
    assert kinds(USER, {"role": "assistant", "content": text}) == kind


def test_special_tokens_are_matched_longest_first() -> None:
    pattern = special_token_pattern(["<s>", "<s>x", "[x]"])
    assert pattern.findall("a <s>x b [x] x <s>") == ["<s>x", "[x]", "<s>"]
    assert special_token_pattern([]).findall("anything") == []
