"""Logits processors, stopping criteria and streamers see with drafts what they see without."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from tests.modeling.drafting import PROMPT, VOCAB, assert_same, drafter, generate, prompt_inputs
from tests.modeling.nano import PAD


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [3, 4]},
        {"min_new_tokens": 9, "eos_token_id": [3, 8, 20], "pad_token_id": PAD},
        {"forced_eos_token_id": 5, "eos_token_id": 5, "pad_token_id": PAD},
        # Rows are told apart by their index: each has a remainder of its own.
        {"prefix_allowed_tokens_fn": lambda row, text: [t for t in range(VOCAB) if t % 4 in (row, len(text) % 4)]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_logits_processors_see_each_prefix(settings: dict[str, Any], batch: int) -> None:
    for kind in ("right", "mixed"):
        assert_same(drafter(kind, 2), prompt_inputs(batch), max_new_tokens=40, **settings)


class EndsAtTokens(StoppingCriteria):
    """Ends a row that is long enough at one of three neighbouring tokens, of which every walk has one."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.isin(input_ids[:, -1], torch.tensor([20, 21, 22])) & (input_ids.shape[1] > PROMPT + 4)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("eos", [None, [30]])
def test_stopping_criteria_see_each_prefix(eos: Any, batch: int) -> None:
    criteria = StoppingCriteriaList([EndsAtTokens()])
    for kind in ("right", "mixed"):
        # Without a token that ends, plain generate pads nothing: an ended row goes on with the others.
        settings = {"eos_token_id": eos, "pad_token_id": PAD, "stopping_criteria": criteria, "max_new_tokens": 60}
        drafted, plain = assert_same(drafter(kind, 3), prompt_inputs(batch), output_scores=True, **settings)
        assert len(drafted.scores) == len(plain.scores)
        assert drafted.sequences.shape[1] < PROMPT + 60


def test_a_criterion_is_given_the_scores_of_its_prefix() -> None:
    class Watch(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            assert len(scores) == input_ids.shape[1] - PROMPT
            best = torch.stack([step.argmax(-1) for step in scores], dim=1)
            return (best[:, -1] == input_ids[:, -1]) & (best.shape[1] == 6)

    settings = {"stopping_criteria": StoppingCriteriaList([Watch()]), "max_new_tokens": 20, "output_scores": True}
    drafted, _ = assert_same(drafter("right", 2), prompt_inputs(1), **settings)
    assert drafted.sequences.shape[1] == PROMPT + 6


def test_stop_strings() -> None:
    letters = [chr(ord("a") + i) for i in range(VOCAB)]
    splitter = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="a"))
    splitter.pre_tokenizer = Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    splitter.decoder = Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter)
    for batch in (1, 3):
        inputs = prompt_inputs(batch)
        text = generate(drafter("right", 3), inputs, False, max_new_tokens=10).sequences
        stop = "".join(letters[token] for token in text[0, PROMPT + 4 : PROMPT + 6].tolist())
        settings = {"stop_strings": [stop], "tokenizer": tokenizer, "max_new_tokens": 30}
        drafted, _ = assert_same(drafter("right", 3), inputs, **settings)
        assert drafted.sequences.shape[1] == PROMPT + 6 or batch > 1


class Recorder:
    def __init__(self) -> None:
        self.put_values: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.put_values.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_is_given_token_after_token() -> None:
    inputs, recorders = prompt_inputs(1), (Recorder(), Recorder())
    for recorder, use_mtp in zip(recorders, (False, True), strict=True):
        generate(drafter("mixed", 3), inputs, use_mtp, max_new_tokens=15, streamer=recorder)
    assert recorders[1].put_values == recorders[0].put_values
    assert recorders[1].ended == recorders[0].ended == 1
