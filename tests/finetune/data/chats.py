"""Conversations of every kind, and the templates, shipped and published, that write them."""

from importlib import resources
from typing import Any

from transformers import PreTrainedTokenizerBase

from seeklet.finetune.data.template import ChatTemplate, render, shipped_templates

# As in the published SmolLM2-135M-Instruct.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What ships beside the published templates that TRL keeps copies of; deepseekv3 there is R1's.
PUBLISHED = {
    "llama3": "llama-3",
    "llama3_1": "llama-3.1",
    "llama3_2": "llama-3.1",
    "qwen2_5": "qwen2.5",
    "qwen3": "qwen3",
    "qwen3_instruct_2507": "chatml",
    "deepseekv3": "deepseek-r1",
    "deepseek_r1_distill": "deepseek-r1",
}
SYSTEM = {"role": "system", "content": "You help customers of a shop.\nBe brief."}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": "On its way."}],
    "system": [SYSTEM, {"role": "user", "content": "Hi {{ bos }}"}, {"role": "assistant", "content": "Hello\n\n- a"}],
    "three turns": [
        SYSTEM,
        *({"role": role, "content": f"{role} {i} ünï 🙂"} for i in range(3) for role in ("user", "assistant")),
    ],
    "no answer yet": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "So"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "track", "description": "Where it is", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = {"type": "function", "function": {"name": "track", "arguments": {"parcel": 7, "wörd": 'a"b'}}}
TOOL_CHAT = [
    SYSTEM,
    {"role": "user", "content": "Where is parcel 7?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "in Bonn"},
    {"role": "assistant", "content": "It is in Bonn."},
]
REASONED = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
    {"role": "user", "content": "3 + 3?"},
    {"role": "assistant", "content": "6", "reasoning_content": "Three and three."},
]


def shipped(name: str) -> ChatTemplate:
    return ChatTemplate(name, shipped_templates()[name])


def published(name: str) -> ChatTemplate:
    return ChatTemplate(name, (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8"))


def text_of(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, chat: list[dict[str, Any]], **more: Any) -> str:
    return render(tokenizer, template, chat, **more).text


def generated(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, chat: list[dict[str, Any]]) -> list[str]:
    text, stretches = render(tokenizer, template, chat)
    return [text[start:end] for start, end in stretches]
