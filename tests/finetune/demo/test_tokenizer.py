"""The tokenizer loses nothing on the way there and back, and its chat template marks what is trained on."""

import pytest
from transformers import AutoTokenizer

from seeklet.finetune.demo.tokenizer import CHARACTERS, TAGS, UNK, VOCABULARY, build_tokenizer

SOLUTION = "<think>3-9=-6;-6+4=-2</think>-2"
SAID = {"role": "assistant", "content": "-2", "reasoning_content": "3-9=-6;-6+4=-2"}
CHAT = [{"role": "user", "content": "3-9+4"}, SAID]


def test_text_survives_the_round_trip() -> None:
    tokenizer = build_tokenizer()
    text = "<think>" + CHARACTERS + "; -3 ,  .\n</think><answer>-12</answer>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    # One token per tag and per character, but one for each of 12, 34, 56 and 78, and for the 12 of the answer.
    assert len(ids) == 4 + len(CHARACTERS) - 4 + len("; -3 ,  .\n") + len("-12") - 1


def test_numbers_of_two_digits_are_one_token() -> None:
    tokenizer = build_tokenizer()
    for text, tokens in (("9+12", ["9", "+", "12"]), ("-100", ["-", "10", "0"]), ("07", ["0", "7"])):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens


def test_tags_survive_decoding_without_special_tokens() -> None:
    tokenizer = build_tokenizer()
    text = str(tokenizer.apply_chat_template(CHAT, tokenize=False))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"<｜User｜>3-9+4<｜Assistant｜>{SOLUTION}"
    assert not set(TAGS) & set(tokenizer.all_special_tokens)


def test_chat_template_writes_the_format_of_deepseek_r1() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        f"<｜begin▁of▁sentence｜><｜User｜>3-9+4<｜Assistant｜>{SOLUTION}<｜end▁of▁sentence｜>"
    )
    assert tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True) == (
        "<｜begin▁of▁sentence｜><｜User｜>3-9+4<｜Assistant｜>"
    )


def test_reasoning_that_is_written_into_the_content_is_not_written_twice() -> None:
    tokenizer = build_tokenizer()
    whole = [CHAT[0], {"role": "assistant", "content": SOLUTION}]
    assert tokenizer.apply_chat_template(whole, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_an_answer_without_reasoning_has_empty_tags() -> None:
    text = build_tokenizer().apply_chat_template([CHAT[0], {"role": "assistant", "content": "-2"}], tokenize=False)
    assert str(text).endswith("<｜Assistant｜><think></think>-2<｜end▁of▁sentence｜>")


def test_chat_template_refuses_an_unknown_role() -> None:
    with pytest.raises(Exception, match='role "system" is not known; allowed: user, assistant'):
        build_tokenizer().apply_chat_template([{"role": "system", "content": "1"}], tokenize=False)


def test_unknown_characters_become_the_unknown_token() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("1x2")["input_ids"]) == ["1", UNK, "2"]


def test_saved_tokenizer_loads_equal(tmp_path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == {token: index for index, token in enumerate(VOCABULARY)}
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.apply_chat_template(CHAT) == tokenizer.apply_chat_template(CHAT)
    assert loaded.padding_side == "left"
