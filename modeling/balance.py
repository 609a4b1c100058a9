"""Load balance of the routed experts: the bias update, the sequence-wise loss, and the counts both need."""

# T tokens, E experts, N sequences

import torch
import torch.distributed as dist

from .kernels.router.reference import expert_scores, top_k_lowest_index


def count_experts(indices_TK: torch.Tensor, num_experts: int, valid_T: torch.Tensor | None = None) -> torch.Tensor:
    """Return how many tokens chose each expert: int64 (E,). Tokens where `valid_T` is False are left out."""
    # Not bincount, which on a GPU makes the host wait for the largest index.
    flat, bins = indices_TK.flatten(), num_experts
    if valid_T is not None:
        # Padding goes to a bin of its own, which is cut off: no synchronisation with the host, unlike indexing.
        flat, bins = torch.where(valid_T[:, None], indices_TK, num_experts).flatten(), num_experts + 1
    return flat.new_zeros(bins).scatter_add_(0, flat, torch.ones_like(flat))[:num_experts]


def updated_bias(bias_E: torch.Tensor, counts_E: torch.Tensor, speed: float) -> torch.Tensor:
    """Return the router bias after one step: lower by `speed` where overloaded, higher where underloaded.

    `bias + speed * sign(mean(counts) - counts)`, in the dtype of `bias_E` (DeepSeek-V3 report, section 2.1.2). With
    counts (3, 1, 2), mean 2, and speed 0.001 the bias changes by (-0.001, +0.001, 0). Leading dimensions are layers.
    """
    counts = counts_E.to(torch.float64)
    return bias_E + speed * torch.sign(counts.mean(-1, keepdim=True) - counts).to(bias_E.dtype)


def sum_over_ranks(counts: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Return `counts` summed over the ranks of `group`; as they are where no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts, group=group)
    return counts


def sequence_balance_loss(
    logits_TE: torch.Tensor,
    sequence_ids_T: torch.Tensor,
    num_sequences: int,
    top_k: int,
    scoring_func: str = "sigmoid",
    valid_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sequence-wise balance loss of one layer, without its coefficient: scalar, mean over the sequences.

    Per sequence `sum_i f_i P_i`, where f_i = E/(K*T) * (tokens among whose top-K scores expert i is) and P_i = mean
    of the normalised score of expert i (DeepSeek-V3 report, equations 17 to 20; scores without bias or groups).
    1.0 is perfect balance. Gradients flow through P.

    Args:
        logits_TE: router logits of all tokens.
        sequence_ids_T: the sequence, in [0, num_sequences), of each token.
        valid_T: False for padding, which counts nothing; a sequence without valid tokens is left out of the mean.
    """
    scores = expert_scores(logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)), scoring_func)
    num_experts = scores.shape[-1]
    share = scores / (scores.sum(-1, keepdim=True) + 1e-20)
    chosen = torch.zeros_like(scores).scatter_(-1, top_k_lowest_index(scores.detach(), top_k), 1.0)
    ones = scores.new_ones(scores.shape[0])
    if valid_T is not None:
        ones = valid_T.to(scores.dtype)
        share, chosen = share * ones[:, None], chosen * ones[:, None]
    zeros = scores.new_zeros(num_sequences, num_experts)
    lengths = scores.new_zeros(num_sequences).index_add(0, sequence_ids_T, ones)
    frequency = zeros.index_add(0, sequence_ids_T, chosen) * (num_experts / top_k) / lengths.clamp(min=1)[:, None]
    probability = zeros.index_add(0, sequence_ids_T, share) / lengths.clamp(min=1)[:, None]
    return (frequency * probability).sum() / (lengths > 0).sum().clamp(min=1)


def sequence_ids(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the index of the packed sequence that each token belongs to, counted within its row: int64 (B, S).

    A new sequence starts wherever a position is not the former one plus 1: positions (0, 1, 2, 0, 1) are sequences
    (0, 0, 0, 1, 1).
    """
    breaks = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = breaks.new_zeros(breaks.shape[0], 1)
    return torch.cat((first, breaks), dim=1).cumsum(1)
