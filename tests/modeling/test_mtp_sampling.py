"""Sampling with drafts is distributed as plain sampling."""

from typing import Any

import pytest
import torch

from tests.modeling.drafting import build_drafter, drafter, generate, prompt_inputs


@torch.no_grad()
def exact_distribution(model: Any, prompt: torch.Tensor, num_new: int, temperature: float, top_k: int) -> torch.Tensor:
    """Return the probability of every continuation of `prompt` (1, S) by sampling: (vocab,) * num_new."""
    vocab = model.config.vocab_size
    probabilities = torch.ones(1, dtype=torch.float64)
    texts = prompt
    for _ in range(num_new):
        logits = model(texts).logits[:, -1].double() / temperature
        lowest = logits.topk(top_k).values[:, -1:]
        step = logits.masked_fill(logits < lowest, -torch.inf).softmax(-1)
        probabilities = (probabilities[:, None] * step).flatten()
        texts = torch.cat((texts.repeat_interleave(vocab, 0), torch.arange(vocab).repeat(len(texts))[:, None]), 1)
    return probabilities


@pytest.mark.parametrize("depth", [1, 2])
def test_sampling_is_distributed_as_plain_sampling(depth: int) -> None:
    vocab, num_new, num_rows, temperature, top_k = 7, 3, 4000, 0.7, 5
    model = build_drafter(depth, vocab_size=vocab, initializer_range=0.08)
    prompt = torch.tensor([[1, 4, 2, 6]])
    expected = exact_distribution(model, prompt, num_new, temperature, top_k) * num_rows
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": temperature, "top_k": top_k, "num_return_sequences": num_rows}
    drafted = generate(model, {"input_ids": prompt}, True, max_new_tokens=num_new, **settings)
    new = drafted.sequences[:, prompt.shape[1] :]
    assert new.shape == (num_rows, num_new)
    # Both outcomes of a draft are common, or the test would show nothing.
    assert 0.2 < drafted.num_accepted_drafts / drafted.num_drafts < 0.9
    cells = (new * vocab ** torch.arange(num_new - 1, -1, -1)).sum(1)
    counts = torch.bincount(cells, minlength=vocab**num_new).double()
    assert not counts[expected == 0].any()
    common = expected >= 5
    observed = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None]))
    freedom = len(wanted) - 1
    chi_square = ((observed - wanted) ** 2 / wanted.clamp(min=1e-9)).sum()
    # Four standard deviations of a chi-square variable above its mean.
    assert freedom > 20 and chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_sampling_with_one_choice_is_greedy() -> None:
    model, inputs = drafter("mixed", 2), prompt_inputs(3)
    settings = {"do_sample": True, "top_k": 1, "num_return_sequences": 2, "max_new_tokens": 25}
    sampled = generate(model, inputs, True, **settings)
    greedy = generate(model, inputs, False, max_new_tokens=25)
    assert torch.equal(sampled.sequences, greedy.sequences.repeat_interleave(2, 0))
    assert sampled.num_accepted_drafts > 0
