"""Speculative decoding: how many drafted tokens are kept, and which token follows them."""

# B rows, D drafts per row, V vocabulary

import torch


def accept_greedy(scores: torch.Tensor, drafts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens (B, D + 1) that greedy decoding takes and the number (B,) of leading drafts equal to them.

    `scores` (B, D + 1, V) are the main model's at the last accepted token and at each draft, `drafts` (B, D). With n
    drafts kept, the first n + 1 tokens of the row are what plain greedy decoding gives; those behind them follow a
    wrong draft and mean nothing.
    """
    tokens = scores.argmax(-1)
    return tokens, _count_leading(tokens[:, :-1] == drafts)


def accept_sampled(
    target: torch.Tensor, proposal: torch.Tensor, drafts: torch.Tensor, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (B, D + 1), whose first n + 1 are distributed as `target`, and n (B,), the number of drafts kept.

    A draft x is kept with probability min(1, target(x) / proposal(x)); the token behind the n kept ones is sampled
    from what `target` has more than `proposal` at the first draft not kept, or from `target` itself where all are.
    Source: Leviathan et al., "Fast inference from transformers via speculative decoding" (2022), algorithm 1.

    Args:
        target: the main model's probabilities (B, D + 1, V).
        proposal: the probabilities (B, D, V) that the drafts (B, D) were sampled from.
        uniform: numbers (B, D) drawn from [0, 1).
    """
    rows = torch.arange(len(drafts), device=drafts.device)
    wanted = target[:, :-1].gather(-1, drafts[..., None]).squeeze(-1)
    proposed = proposal.gather(-1, drafts[..., None]).squeeze(-1)
    num_kept = _count_leading(uniform * proposed < wanted)
    # Behind the last draft nothing was proposed, and the residual is the target itself.
    proposal = torch.cat((proposal, torch.zeros_like(target[:, :1])), dim=1)
    last = torch.multinomial(residual(target[rows, num_kept], proposal[rows, num_kept]), num_samples=1)
    tokens = torch.cat((drafts, last), dim=1)
    return tokens.scatter(1, num_kept[:, None], last), num_kept


def residual(target: torch.Tensor, proposal: torch.Tensor) -> torch.Tensor:
    """Return max(target - proposal, 0) (B, V), not normalised, to sample from where a draft was not kept.

    Where the two are equal a draft is only lost to rounding, and `target` is returned.
    """
    more = (target - proposal).clamp(min=0)
    return torch.where(more.sum(-1, keepdim=True) > 0, more, target)


def _count_leading(kept: torch.Tensor) -> torch.Tensor:
    return kept.long().cumprod(1).sum(1)
