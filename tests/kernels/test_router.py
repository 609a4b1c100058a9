"""The choice of experts against a search in plain Python, ties included, and the weights' gradients."""

from typing import Any

import pytest
import torch

from seeklet.modeling.kernels.router.reference import choose_experts, expert_scores, route, top_k_lowest_index


def choose_by_search(biased: list[float], n_group: int, topk_group: int, top_k: int) -> list[int]:
    """Return the chosen experts, best first: groups by the sum of their two best, ties to the lowest index."""
    size = len(biased) // n_group
    best_two = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(n_group)]
    groups = sorted(range(n_group), key=lambda g: (-best_two[g], g))[:topk_group]
    allowed = [i for g in groups for i in range(g * size, (g + 1) * size)]
    return sorted(allowed, key=lambda i: (-biased[i], i))[:top_k]


CHOICES = [
    # experts, n_group, topk_group, top_k
    (8, 1, 1, 3),
    (8, 4, 2, 3),
    (8, 4, 4, 3),
    (8, 2, 1, 4),
    (8, 8, 5, 5),
    (9, 3, 2, 1),
    (256, 8, 4, 8),
]


@pytest.mark.parametrize(("experts", "n_group", "topk_group", "top_k"), CHOICES)
@pytest.mark.parametrize("ties", [False, True])
def test_choice_equals_a_plain_search(experts: int, n_group: int, topk_group: int, top_k: int, ties: bool) -> None:
    """With ties: five values only, multiples of 1/8, whose sums are exact; so experts and groups tie all the time."""
    scores, bias = torch.rand(200, experts), torch.rand(experts) - 0.5
    if ties:
        scores, bias = torch.randint(0, 5, scores.shape) / 8, torch.randint(0, 2, bias.shape) / 8
    chosen = choose_experts(scores, bias, n_group, topk_group, top_k)
    expected = [choose_by_search(row, n_group, topk_group, top_k) for row in (scores + bias).tolist()]
    assert chosen.tolist() == expected


def test_equal_experts_are_chosen_by_lowest_index() -> None:
    scores = torch.tensor([[0.2, 0.7, 0.5, 0.7, 0.7, 0.5]])
    assert choose_experts(scores, torch.zeros(6), 1, 1, 2).tolist() == [[1, 3]]
    assert choose_experts(scores, torch.zeros(6), 1, 1, 4).tolist() == [[1, 3, 4, 2]]
    assert choose_experts(torch.full((1, 64), 0.5), torch.zeros(64), 1, 1, 8).tolist() == [list(range(8))]


def test_equal_groups_are_chosen_by_lowest_index() -> None:
    """Groups 1, 2 and 3 have the same best two; one is to be left out."""
    scores = torch.tensor([[0.1, 0.1, 0.25, 0.5, 0.5, 0.25, 0.25, 0.5]])
    assert choose_experts(scores, torch.zeros(8), 4, 2, 2).tolist() == [[3, 4]]
    assert choose_experts(torch.full((1, 64), 0.5), torch.zeros(64), 8, 4, 8).tolist() == [list(range(8))]


def test_top_k_is_stable_for_infinities_and_nearly_equal_values() -> None:
    values = torch.tensor([[float("-inf"), 1.0, 1.0 + 1e-7, float("-inf"), 1.0]])
    assert top_k_lowest_index(values, 5).tolist() == [[2, 1, 4, 0, 3]]


def test_bias_moves_the_choice_and_never_the_weight() -> None:
    logits, bias = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([10.0, 0.0, 0.0, 0.0])
    settings: dict[str, Any] = {**SETTINGS, "n_group": 1, "topk_group": 1}
    weights, indices = route(logits, bias, **settings)
    assert indices.tolist() == [[0, 3]]
    scores = logits.sigmoid()[0, [0, 3]]
    torch.testing.assert_close(weights[0], 2.5 * scores / scores.sum())


def test_negative_biased_scores_outrank_closed_groups() -> None:
    """An expert of a closed group is never chosen, even where all open ones are below zero."""
    bias = torch.tensor([-3.0, -3.0, -3.0, -3.0])
    scores = torch.tensor([[0.9, 0.9, 0.2, 0.1]])
    assert choose_experts(scores, bias, 2, 1, 2).tolist() == [[0, 1]]


SETTINGS: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "n_group": 4,
    "topk_group": 2,
    "top_k": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_weights_and_their_gradients(scoring_func: str, norm_topk_prob: bool) -> None:
    """Against a formula of the chosen scores alone, and finite differences."""
    settings = SETTINGS | {"scoring_func": scoring_func, "norm_topk_prob": norm_topk_prob}
    logits = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.rand(8)
    weights, indices = route(logits, bias, **settings)
    for row, chosen, actual in zip(logits.detach(), indices, weights.detach(), strict=True):
        scores = 1 / (1 + torch.exp(-row)) if scoring_func == "sigmoid" else torch.exp(row) / torch.exp(row).sum()
        expected = scores[chosen] / (scores[chosen].sum() if norm_topk_prob else 1.0)
        torch.testing.assert_close(actual, 2.5 * expected)
    torch.autograd.gradcheck(lambda x: route(x, bias, **settings)[0], (logits,))


def test_scores_that_all_underflow_give_finite_weights() -> None:
    weights, _ = route(torch.full((1, 8), -200.0), torch.zeros(8), **SETTINGS)
    assert weights.isfinite().all()


def test_scores() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(expert_scores(logits, "sigmoid"), 1 / (1 + torch.exp(-logits)))
    torch.testing.assert_close(expert_scores(logits, "softmax"), torch.exp(logits) / torch.exp(logits).sum())
