"""The Go template that is chosen writes what the Jinja template writes; where none does, none is chosen."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from seeklet.finetune.data.template import shipped_templates
from seeklet.finetune.export.chat_templates import find_template, read_template, render_ollama
from tests.finetune.nano_checkpoints import CHATML, build_tokenizer, deepseek_tokenizer

# Shipped template: the family it must be found to be, and what it says of its own.
FAMILIES = {
    "chatml": ("chatml", None),
    "deepseek-r1": ("deepseek-r1-kept", None),
    "deepseek-v3": ("deepseek-v3", None),
    "llama-3": ("llama-3", None),
    "llama-3.1": ("llama-3.1", None),
    "moonlight": ("moonlight", "You are a helpful assistant"),
    "qwen2.5": ("chatml", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": ("chatml", None),
    "smollm2": ("chatml", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
}
# DeepSeek-R1's own, as it is published, without tools.
PUBLISHED_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1] %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
CONVERSATION = [
    {"role": "user", "content": "One {{ .Role }} more?"},
    {"role": "assistant", "content": "Yes,\nhere."},
    {"role": "user", "content": "Thanks 😀"},
]


def tokenizer_with(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer(CHATML, bos="<|begin|>")
    tokenizer.chat_template = template
    return tokenizer


def test_every_shipped_template_has_its_family() -> None:
    found = {name: find_template(tokenizer_with(text)) for name, text in shipped_templates().items()}
    assert {name: (chosen.name, chosen.system) for name, chosen in found.items() if chosen} == FAMILIES
    assert found.keys() == FAMILIES.keys()


@pytest.mark.parametrize("text", [*shipped_templates().values(), PUBLISHED_R1])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_conversations_that_it_was_not_chosen_by(text: str, system: str | None) -> None:
    tokenizer: Any = tokenizer_with(text)
    chosen = find_template(tokenizer)
    assert chosen is not None
    messages = [*([{"role": "system", "content": system}] if system else []), *CONVERSATION]
    ours = chosen.begins_with + render_ollama(chosen.text, messages, chosen.system)
    assert ours == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_the_published_tokenizer_and_r1() -> None:
    chosen = find_template(deepseek_tokenizer())
    assert chosen is not None
    assert (chosen.name, chosen.begins_with) == ("deepseek-v3", "<｜begin▁of▁sentence｜>")
    chosen = find_template(tokenizer_with(PUBLISHED_R1))
    assert chosen is not None and (chosen.name, chosen.begins_with) == ("deepseek-r1", "<|begin|>")


def test_a_bos_that_opens_turns_is_no_beginning() -> None:
    tokenizer = tokenizer_with(shipped_templates()["smollm2"])
    tokenizer.bos_token = "<|im_start|>"
    chosen = find_template(tokenizer)
    assert chosen is not None and chosen.begins_with == ""


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        # ChatML but for one space; but for the role's name; with today's date; that refuses system messages.
        shipped_templates()["smollm2"].replace("<|im_end|>\\n", "<|im_end|> \\n"),
        shipped_templates()["chatml"].replace("<|im_start|>assistant", "<|im_start|>model"),
        "{{ strftime_now('%Y') }}" + shipped_templates()["chatml"],
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + shipped_templates()["chatml"],
        "{% for",
    ],
)
def test_another_template_is_never_guessed(text: str | None) -> None:
    assert find_template(tokenizer_with(text)) is None


def test_thinking_is_as_ollama_asks_for_it() -> None:
    """Ollama gives the reasoning of a turn apart where it was asked to think."""
    from seeklet.finetune.export.go_template import render

    turns = [{"Role": "user", "Content": "Q", "Thinking": ""}]
    data = {"Messages": turns, "System": "", "IsThinkSet": True, "Think": False}
    assert render(read_template("deepseek-v3"), data) == "<｜User｜>Q<｜Assistant｜><think>\n\n</think>\n\n"
    turns.append({"Role": "assistant", "Content": "A", "Thinking": "T"})
    assert render(read_template("deepseek-v3"), data) == "<｜User｜>Q<｜Assistant｜><think>\nT\n</think>\n\nA"
