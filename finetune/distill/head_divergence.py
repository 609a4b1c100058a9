"""Divergences of two output heads, a chunk of tokens at a time: neither model's logits are ever there in full."""

# T tokens, H hidden of the student, G hidden of the teacher, C tokens of a chunk, V shared vocabulary, K buckets

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from seeklet.modeling.kernels.linear_cross_entropy.reference import CHUNK_ELEMENTS, MIN_CHUNK_ROWS
from seeklet.modeling.kernels.linear_log_probs.reference import entropy_of

from .divergence import generalized_jsd, log_softmax


class Distances(NamedTuple):
    """Of each token, fp32 or wider (T,): how far student and teacher are apart, and the student's entropy, in nats.

    Only the first has a gradient.
    """

    divergence: torch.Tensor
    entropy: torch.Tensor


def head_divergence(
    student_head: nn.Module,
    student_TH: torch.Tensor,
    teacher_head: nn.Module,
    teacher_TG: torch.Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    num_shared: int | None = None,
) -> Distances:
    """Return the generalised JSD(beta) of two heads at each token; the gradient reaches the student only.

    Args:
        student_head: called a chunk of tokens at a time, and once more for the gradient; of any kind.
        student_TH: what it is applied to.
        teacher_head: of any other width.
        teacher_TG: what that is applied to.
        beta: 0 is the forward KL, 1 the reverse KL (`generalized_jsd`).
        temperature: both logits are divided by it.
        num_shared: logits behind the first so many are left out (`vocabulary.shared_vocabulary`); None is all.
    """

    def distances(student_CH: torch.Tensor, teacher_CG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            teacher = log_softmax(teacher_head(teacher_CG)[:, :num_shared], temperature)
        student = log_softmax(student_head(student_CH)[:, :num_shared], temperature)
        teacher = teacher.to(student.device)
        return generalized_jsd(student, teacher, beta), entropy_of(student.detach())

    return _in_chunks(distances, _chunk_rows(student_head), student_TH, teacher_TG)


def head_bucket_divergence(
    student_head: nn.Module,
    student_TH: torch.Tensor,
    tokens_TK: torch.Tensor,
    log_probs: torch.Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    num_shared: int | None = None,
) -> Distances:
    """Return the generalised JSD(beta) over K + 1 buckets: the tokens that are named, and all others as one.

    It is at most that over the whole vocabulary, and equal where the teacher's odds within the last bucket are the
    student's; its gradient leaves those odds as they are.

    Args:
        student_head: as in `head_divergence`.
        student_TH: what it is applied to.
        tokens_TK: the ids of each token's buckets, all different.
        log_probs: (T, K + 1), the teacher's log-probabilities of these, the last that of all other tokens; at the same
            temperature.
        beta: as in `head_divergence`.
        temperature: as in `head_divergence`.
        num_shared: as in `head_divergence`.
    """

    def distances(
        student_CH: torch.Tensor, tokens_CK: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        student = log_softmax(student_head(student_CH)[:, :num_shared], temperature)
        buckets = bucket_log_probs(student, tokens_CK.long().to(student.device))
        teacher = teacher.to(student)
        if tokens_CK.shape[-1] == student.shape[-1]:
            # There are no others.
            buckets, teacher = buckets[:, :-1], teacher[:, :-1]
        # What was rounded adds up to 1 again.
        return generalized_jsd(buckets, teacher.log_softmax(-1), beta), entropy_of(student.detach())

    return _in_chunks(distances, _chunk_rows(student_head), student_TH, tokens_TK, log_probs)


def bucket_log_probs(log_p: torch.Tensor, tokens_TK: torch.Tensor) -> torch.Tensor:
    """Return (T, K + 1): the log-probabilities (T, V) of the tokens, and of all others together.

    >>> bucket_log_probs(torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log(), torch.tensor([[0, 2]])).exp()
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    named = log_p.gather(-1, tokens_TK)
    # Not 1 less the sum of the others, of which nothing is left where they are nearly everything; and not 0, of which
    # there is no logarithm, where they are everything.
    smallest = torch.finfo(log_p.dtype).min / 2
    others = log_p.clamp(min=smallest).scatter(-1, tokens_TK, smallest)
    return torch.cat((named, others.logsumexp(-1, keepdim=True)), dim=-1)


def _in_chunks(
    distances: Callable[..., tuple[torch.Tensor, torch.Tensor]], rows: int, *tensors: torch.Tensor
) -> Distances:
    # There is at least one chunk, so that a batch without tokens is still connected to every parameter.
    chunks = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = [
        checkpoint(distances, *chunk, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        for chunk in chunks
    ]
    return Distances(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _chunk_rows(head: nn.Module) -> int:
    vocabulary = getattr(head, "out_features", None)
    return max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // vocabulary) if vocabulary else MIN_CHUNK_ROWS
