"""Aux-loss-free, group-limited top-k routing (DeepSeek-V3 report, section 2.1.2, equations 12-16)."""

# T tokens, E experts, G groups, K experts chosen per token

import torch


def expert_scores(logits_TE: torch.Tensor, scoring_func: str) -> torch.Tensor:
    """Return the affinity of each token to each expert: elementwise sigmoid, or softmax over the experts."""
    return logits_TE.sigmoid() if scoring_func == "sigmoid" else logits_TE.softmax(-1)


def top_k_lowest_index(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the `k` largest of the last dimension, largest first; equal values by lowest index.

    `torch.topk` leaves the order of equal values open, which makes two devices route the same token differently.
    """
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def choose_experts(
    scores_TE: torch.Tensor, bias_E: torch.Tensor, n_group: int, topk_group: int, top_k: int
) -> torch.Tensor:
    """Return the indices (T, K) of the chosen experts; the bias counts for the choice only, never for the weight.

    A group's score is the sum of its two best biased scores (its only one, where a group has one expert). Experts
    outside the best `topk_group` groups are never chosen. Ties go to the lowest index.
    """
    biased_TE = scores_TE + bias_E
    if n_group > 1 and topk_group < n_group:
        grouped_TGE = biased_TE.unflatten(-1, (n_group, -1))
        group_scores_TG = grouped_TGE.topk(min(2, grouped_TGE.shape[-1]), dim=-1).values.sum(-1)
        kept = top_k_lowest_index(group_scores_TG, topk_group)
        closed_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(-1, kept, False)
        biased_TE = grouped_TGE.masked_fill(closed_TG.unsqueeze(-1), float("-inf")).flatten(-2)
    return top_k_lowest_index(biased_TE, top_k)


def _weights(scores_TK: torch.Tensor, norm_topk_prob: bool, routed_scaling_factor: float) -> torch.Tensor:
    if norm_topk_prob:
        scores_TK = scores_TK / (scores_TK.sum(-1, keepdim=True) + 1e-20)
    return scores_TK * routed_scaling_factor


def _choice(
    scores_TE: torch.Tensor,
    bias_E: torch.Tensor,
    expert_choice: torch.Tensor | None,
    n_group: int,
    topk_group: int,
    top_k: int,
) -> torch.Tensor:
    indices_TK = choose_experts(scores_TE, bias_E, n_group, topk_group, top_k)
    if expert_choice is None:
        return indices_TK
    return torch.where(expert_choice >= 0, expert_choice.to(indices_TK.dtype), indices_TK)


def route(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    expert_choice: torch.Tensor | None = None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights (T, K) in the dtype of `logits_TE` and the indices (T, K, int64) of the chosen experts.

    Gradients flow through the weights to the logits, not to the bias. `expert_choice` (T, K) are indices to take in
    place of the best ones, except in rows that are negative (routing replay, R3: arXiv 2510.11370).
    """
    scores_TE = expert_scores(logits_TE, scoring_func)
    with torch.no_grad():
        indices_TK = _choice(scores_TE.detach(), bias_E, expert_choice, n_group, topk_group, top_k)
    return _weights(scores_TE.gather(-1, indices_TK), norm_topk_prob, routed_scaling_factor), indices_TK


def route_forward(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    expert_choice: torch.Tensor | None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights, indices and scores of the chosen experts, each (T, K); the first two are those of `route`."""
    scores_TE = expert_scores(logits_TE, scoring_func)
    indices_TK = _choice(scores_TE, bias_E, expert_choice, n_group, topk_group, top_k)
    scores_TK = scores_TE.gather(-1, indices_TK)
    return _weights(scores_TK, norm_topk_prob, routed_scaling_factor), indices_TK, scores_TK


def route_backward(
    grad_TK: torch.Tensor,
    scores_TK: torch.Tensor,
    indices_TK: torch.Tensor,
    logits_TE: torch.Tensor | None,
    num_experts: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> torch.Tensor:
    """Return the gradient (T, E) to the logits, given that to the weights.

    `scores_TK` and `indices_TK` are those of `route_forward`; `logits_TE` are given where scores are a softmax.
    """
    grad_TK = grad_TK * routed_scaling_factor
    if norm_topk_prob:
        total = scores_TK.sum(-1, keepdim=True) + 1e-20
        grad_TK = (grad_TK - (grad_TK * scores_TK).sum(-1, keepdim=True) / total) / total
    grad_TK = grad_TK * scores_TK
    if logits_TE is None:
        grad_TK = grad_TK * (1 - scores_TK)
    grad_TE = scores_TK.new_zeros((len(scores_TK), num_experts)).scatter_add_(-1, indices_TK, grad_TK)
    if logits_TE is not None:
        grad_TE -= logits_TE.softmax(-1) * grad_TK.sum(-1, keepdim=True)
    return grad_TE
