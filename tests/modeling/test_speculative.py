"""The rules by which drafts are kept, against cases worked out by hand."""

import torch

from seeklet.modeling.speculative import accept_greedy, accept_sampled, residual


def test_greedy_keeps_the_leading_drafts_that_are_the_best_tokens() -> None:
    best = torch.tensor([[2, 0, 1], [2, 0, 1], [2, 0, 1], [2, 0, 1]])
    scores = torch.nn.functional.one_hot(best, 3).float()
    # None right; the first; both; only the second, which counts for nothing behind a wrong one.
    drafts = torch.tensor([[0, 1], [2, 1], [2, 0], [1, 0]])
    tokens, num_kept = accept_greedy(scores, drafts)
    assert num_kept.tolist() == [0, 1, 2, 0]
    assert torch.equal(tokens, best)


def test_greedy_takes_the_first_of_equal_scores() -> None:
    tokens, num_kept = accept_greedy(torch.ones(1, 2, 4), torch.tensor([[0]]))
    assert tokens.tolist() == [[0, 0]] and num_kept.tolist() == [1]


def test_residual_is_what_the_target_has_more() -> None:
    target = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    proposal = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    expected = torch.tensor([[0.4, 0.0, 0.0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(residual(target, proposal), expected)


def test_a_draft_is_kept_with_probability_target_over_proposal() -> None:
    # Token 0 is proposed with 0.8 and wanted with 0.4: kept where the number drawn is below 0.5.
    target = torch.tensor([0.4, 0.6, 0.0]).expand(4, 2, 3)
    proposal = torch.tensor([0.8, 0.0, 0.2]).expand(4, 1, 3)
    drafts = torch.tensor([[0], [0], [0], [2]])
    uniform = torch.tensor([[0.49], [0.51], [0.0], [0.0]])
    tokens, num_kept = accept_sampled(target, proposal, drafts, uniform)
    # Token 2 is never wanted, so it is not kept even where 0 is drawn.
    assert num_kept.tolist() == [1, 0, 1, 0]
    # Where the draft is lost, only token 1 is wanted more than it is proposed.
    assert tokens[:, 0].tolist() == [0, 1, 0, 1]


def test_the_token_behind_all_drafts_comes_from_the_target() -> None:
    target = torch.zeros(2, 3, 4)
    target[:, 0, 1] = target[:, 1, 2] = target[:, 2, 3] = 1
    proposal = torch.full((2, 2, 4), 0.25)
    drafts = torch.tensor([[1, 2], [1, 0]])
    tokens, num_kept = accept_sampled(target, proposal, drafts, torch.full((2, 2), 0.99))
    assert num_kept.tolist() == [2, 1]
    assert tokens[0].tolist() == [1, 2, 3]
    assert tokens[1, :2].tolist() == [1, 2]


def test_tokens_are_distributed_as_the_target() -> None:
    num = 40_000
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 5, generator=generator).softmax(-1)
    proposal = (3 * torch.rand(1, 2, 5, generator=generator)).softmax(-1)
    drafts = torch.multinomial(proposal[0], num, replacement=True, generator=generator).T
    uniform = torch.rand(num, 2, generator=generator)
    tokens, num_kept = accept_sampled(target.expand(num, 3, 5), proposal.expand(num, 2, 5), drafts, uniform)
    for position in range(3):
        # Position j is only valid where all drafts before it were kept, whatever they are.
        valid = tokens[num_kept >= position, position]
        expected = target[0, position] * len(valid)
        counts = torch.bincount(valid, minlength=5)
        assert len(valid) > num / 10
        # Chi-square with 4 degrees of freedom is above 23.5 once in 10,000 times.
        assert ((counts - expected) ** 2 / expected).sum() < 23.5
    # Kept: sum over tokens of min(target, proposal).
    rate = torch.minimum(target[0, 0], proposal[0, 0]).sum()
    assert abs((num_kept >= 1).double().mean() - rate) < 0.01
