"""Distances between a student and a teacher with another tokenizer, over spans of text that both have tokens for."""

# B rows, C tokens of a row, K spans of a row, N spans of all rows, V and W vocabularies

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seeklet.modeling.kernels.linear_cross_entropy.reference import MIN_CHUNK_ROWS

from .divergence import log_softmax


def span_sums(values: torch.Tensor, spans: torch.Tensor, num_spans: int) -> torch.Tensor:
    """Return (B, K): the sum over the tokens (B, C) of each span; `spans` (B, C) is -1 where there is none.

    >>> span_sums(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[0, 0, 1, -1]]), 2)
    tensor([[3., 4.]])
    """
    # Those of no span go to one more, which is cut off.
    places = torch.where(spans < 0, num_spans, spans)
    sums = values.new_zeros(len(values), num_spans + 1).scatter_add(1, places, values)
    return sums[:, :num_spans]


def last_of_spans(spans: torch.Tensor, num_spans: int) -> torch.Tensor:
    """Return (B, K): the place in its row of the last token of each span, -1 of spans that a row does not have."""
    places = torch.where(spans < 0, num_spans, spans)
    numbers = torch.arange(spans.shape[1], device=spans.device).expand_as(spans)
    last = spans.new_full((len(spans), num_spans + 1), -1)
    return last.scatter_reduce(1, places, numbers, "amax")[:, :num_spans]


def sampled_reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return log p_student - log p_teacher of what the student has sampled, whose mean is KL(student ‖ teacher).

    Its gradient is (log p_student - log p_teacher) ∇ log p_student, whose mean is that of the KL, each span counting
    for itself: none is credited with what follows it. That of the value as it stands would have a mean of 0.
    """
    gap = (student - teacher).detach()
    return gap + gap * (student - student.detach())


def sorted_distance(
    student_head: nn.Module,
    student_NH: torch.Tensor,
    student_earlier: torch.Tensor,
    teacher_head: nn.Module,
    teacher_NG: torch.Tensor,
    teacher_earlier: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return (N,) the L1 distance of both distributions' sorted probabilities (ULD, arXiv 2402.12030).

    Of a span of several tokens it is the distribution of the last one times the probability of those before it: what
    TRL calls the bayesian merge. It compares how sure both are, and not of what.

    Args:
        student_head: called a chunk of spans at a time, and once more for the gradient.
        student_NH: the student's hidden states in front of the last token of each span.
        student_earlier: (N,), its summed log-probabilities of the span's other tokens; has a gradient too.
        teacher_head: of any other vocabulary.
        teacher_NG: the teacher's.
        teacher_earlier: the teacher's.
        temperature: both logits are divided by it.
    """

    def distance(student: torch.Tensor, earlier: torch.Tensor, teacher: torch.Tensor, theirs: torch.Tensor):
        with torch.no_grad():
            target = (log_softmax(teacher_head(teacher), temperature) + theirs[:, None]).exp()
        found = (log_softmax(student_head(student), temperature) + earlier[:, None]).exp()
        sides = [found.sort(-1, descending=True).values, target.to(found).sort(-1, descending=True).values]
        width = max(side.shape[-1] for side in sides)
        found, target = (F.pad(side, (0, width - side.shape[-1])) for side in sides)
        return (found - target).abs().sum(-1)

    tensors = (student_NH, student_earlier, teacher_NG, teacher_earlier)
    chunks = zip(*(tensor.split(MIN_CHUNK_ROWS) for tensor in tensors), strict=True)
    parts: list[torch.Tensor] = [checkpoint(distance, *chunk, use_reentrant=False) for chunk in chunks]  # pyright: ignore
    return torch.cat(parts)
