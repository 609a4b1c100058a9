"""How far a student's distribution is from its teacher's: forward and reverse KL, and what lies between them."""

# V outcomes: tokens of a vocabulary, or buckets of them

import math

import torch


def relative_entropy(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p ‖ q) in nats over the last dimension; what p cannot do counts nothing.

    >>> relative_entropy(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log())
    tensor(0.6931)
    """
    # -inf less -inf is NaN, and so is 0 times it.
    gap = (log_p - log_q).masked_fill(log_p == -math.inf, 0)
    return (log_p.exp() * gap).sum(-1)


def generalized_jsd(student_log_p: torch.Tensor, teacher_log_p: torch.Tensor, beta: float) -> torch.Tensor:
    """Return, in nats, JSD(beta) = beta KL(teacher ‖ m) + (1 - beta) KL(student ‖ m), m = beta teacher + (1 - beta)
    student; over the last dimension of log-probabilities (…, V).

    Its two limits, divided by what they vanish with, stand at the ends, as is usual: beta 0 is the forward KL(teacher ‖
    student), which covers all that the teacher may say; beta 1 the reverse KL(student ‖ teacher), which keeps to what
    it would say (arXiv 2306.13649, equation 1).
    """
    if beta == 0:
        return relative_entropy(teacher_log_p, student_log_p)
    if beta == 1:
        return relative_entropy(student_log_p, teacher_log_p)
    mixture = torch.logaddexp(student_log_p + math.log1p(-beta), teacher_log_p + math.log(beta))
    of_teacher = relative_entropy(teacher_log_p, mixture)
    return beta * of_teacher + (1 - beta) * relative_entropy(student_log_p, mixture)


def log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return log softmax(`logits` / temperature) over the last dimension, at least fp32."""
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
