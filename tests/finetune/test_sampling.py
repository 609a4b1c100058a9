"""Many completions a prompt: distributed as the model says, with and without drafts, and cut where they end."""

import itertools
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from seeklet.finetune.sampling import Sampling, sample
from tests.modeling.drafting import LENGTHS, build_drafter, drafter, draw_walks

VOCAB, EOS, PAD, NUM_NEW = 6, 2, 0, 3
# Of different lengths, so that one of them is padded.
PROMPTS = [[1, 4, 3, 5], [5, 1]]
NUM_SAMPLES = 2000
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 3},
    {"top_p": 0.7},
    {"temperature": 0.8, "min_p": 0.15},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
]


def likely(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return probabilities (V,) as the settings' own descriptions define them."""
    probabilities = (logits.double() / sampling.temperature).softmax(0)
    order = probabilities.argsort(descending=True).tolist()
    if sampling.top_k:
        probabilities[order[sampling.top_k :]] = 0
        probabilities = probabilities / probabilities.sum()
    if sampling.top_p < 1:
        mass = 0.0
        for token in order:
            if mass >= sampling.top_p:
                probabilities[token] = 0
            mass += probabilities[token].item()
        probabilities = probabilities / probabilities.sum()
    probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


@torch.no_grad()
def exact_distribution(model: Any, prompt: list[int], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Return the probability of every completion, an end-of-sequence token included."""
    finished, open_texts = {}, {(): 1.0}
    for _ in range(sampling.max_new_tokens):
        longer = {}
        for text, probability in open_texts.items():
            logits = model(torch.tensor([[*prompt, *text]])).logits[0, -1]
            for token, share in enumerate(likely(logits, sampling).tolist()):
                ended = token == EOS
                (finished if ended else longer)[*text, token] = probability * share
        open_texts = longer
    return finished | open_texts


def chi_square_probability(samples: list[list[int]], expected: dict[tuple[int, ...], float]) -> float:
    """Return how probable Pearson's statistic is to be this large or larger.

    Texts expected fewer than five times are counted together.
    """
    counts = dict.fromkeys(expected, 0)
    for text in samples:
        # A completion that cannot be is a KeyError.
        counts[tuple(text)] += 1
        assert expected[tuple(text)] > 0
    common = [text for text in expected if expected[text] * len(samples) >= 5]
    cells = [(counts[text], expected[text] * len(samples)) for text in common]
    rest = sum(counts.values()) - sum(count for count, _ in cells), len(samples) - sum(wanted for _, wanted in cells)
    cells += [rest] if rest[1] > 1 else []
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = len(cells) - 1
    assert freedom > 5
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))


@pytest.mark.parametrize(("drafts", "settings"), [*itertools.product((0, 1), SETTINGS), (2, SETTINGS[-1])], ids=str)
def test_samples_are_distributed_as_the_model_says(drafts: int, settings: dict[str, Any]) -> None:
    """Of prompts of different lengths, with completions that end early; also speculatively."""
    model = build_drafter(max(drafts, 1), vocab_size=VOCAB, initializer_range=0.08)
    sampling = Sampling(max_new_tokens=NUM_NEW, use_mtp=drafts > 0, **settings)
    torch.manual_seed(1)
    samples = sample(model, PROMPTS, NUM_SAMPLES, sampling, [EOS], PAD).tokens
    for index, prompt in enumerate(PROMPTS):
        rows = samples[index * NUM_SAMPLES : (index + 1) * NUM_SAMPLES]
        expected = exact_distribution(model, prompt, sampling)
        assert sum(expected.values()) == pytest.approx(1)
        # Every change of the order in which numbers are drawn is a new run: one of some hundreds of them fails.
        assert chi_square_probability(rows, expected) > 1e-4


def test_the_test_of_distribution_can_fail() -> None:
    model = build_drafter(1, vocab_size=VOCAB, initializer_range=0.08)
    torch.manual_seed(1)
    samples = sample(model, PROMPTS[:1], NUM_SAMPLES, Sampling(max_new_tokens=NUM_NEW), [EOS], PAD).tokens
    other = exact_distribution(model, PROMPTS[0], Sampling(max_new_tokens=NUM_NEW, temperature=0.8))
    assert chi_square_probability(samples, other) < 1e-4


def walks() -> list[list[int]]:
    return [row[:length] for row, length in zip(draw_walks(4, max(LENGTHS)).tolist(), LENGTHS, strict=True)]


def greedy_alone(model: Any, prompt: list[int], num_new: int, eos: set[int]) -> list[int]:
    """Return the most likely tokens, each from a pass over the whole text."""
    text = list(prompt)
    for _ in range(num_new):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] in eos:
            break
    return text[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("eos", [{31}, {3, 9, 20}, set(range(1, 32))], ids=len)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-5}], ids=str)
def test_the_most_likely_tokens_of_each_prompt_alone(settings: dict[str, Any], eos: set[int], use_mtp: bool) -> None:
    model = drafter("mixed", 2)
    torch.manual_seed(4)
    prompts = walks()
    sampling = Sampling(max_new_tokens=20, use_mtp=use_mtp, **settings)
    rows = sample(model, prompts, 2, sampling, eos, PAD).tokens
    expected = [greedy_alone(model, prompt, 20, eos) for prompt in prompts]
    assert rows == list(itertools.chain.from_iterable([row, row] for row in expected))
    assert len(eos) == 1 or len({len(row) for row in rows}) > 1 or {len(row) for row in rows} == {1}


@torch.no_grad()
@pytest.mark.parametrize("sliding", [None, 6])
def test_other_models_too(sliding: int | None) -> None:
    """Rows leave the cache of any model, one with a sliding window included."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config, model_class = LlamaConfig(**sizes, **heads), LlamaForCausalLM
    if sliding:
        config, model_class = MistralConfig(**sizes, **heads, sliding_window=sliding), MistralForCausalLM
    model = model_class(config).eval().double()
    prompts, eos = walks(), {5, 6, 7, 8}
    rows = sample(model, prompts, 3, Sampling(max_new_tokens=24, temperature=0.0), eos, PAD).tokens
    assert rows[::3] == [greedy_alone(model, prompt, 24, eos) for prompt in prompts]
    assert len({len(row) for row in rows}) > 1


@pytest.mark.parametrize("use_mtp", [False, True])
def test_what_a_checkpoint_says_of_generation_changes_nothing(use_mtp: bool) -> None:
    """A penalty in generation_config.json would make samples of another distribution than the policy's."""
    model = drafter("mixed", 2)
    before = model.generation_config.to_dict()
    prompts, rows = [[1, 2, 3, 4, 5, 6, 7]], []
    try:
        for given in ({}, {"repetition_penalty": 50.0, "min_new_tokens": 15, "max_length": 9, "temperature": 0.1}):
            model.generation_config.update(**given)
            torch.manual_seed(0)
            sampling = Sampling(max_new_tokens=20, temperature=0.0, use_mtp=use_mtp)
            rows.append(sample(model, prompts, 2, sampling, {12}, PAD).tokens)
    finally:
        model.generation_config.update(**before)
    assert rows[0] == rows[1]
    assert rows[0][0] == greedy_alone(model, prompts[0], 20, {12})


def test_a_seed_decides_the_samples() -> None:
    model = build_drafter(1, vocab_size=VOCAB, initializer_range=0.08)
    rows = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        rows.append(sample(model, PROMPTS, 20, Sampling(max_new_tokens=8), [EOS], PAD).tokens)
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("use_mtp", [False, True])
def test_tokens_are_told_as_they_come(use_mtp: bool) -> None:
    model, told = build_drafter(1, vocab_size=VOCAB, initializer_range=0.08), []
    torch.manual_seed(0)
    sampling = Sampling(max_new_tokens=8, use_mtp=use_mtp)
    rows = sample(model, PROMPTS, 20, sampling, [EOS], PAD, on_tokens=told.append).tokens
    assert sum(told) == sum(map(len, rows)) > 0
