"""Divergences against values by hand and against TRL's own on the same tensors, with every gradient."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from seeklet.finetune.distill import head_divergence as module
from seeklet.finetune.distill.divergence import generalized_jsd, log_softmax, relative_entropy
from seeklet.finetune.distill.head_divergence import bucket_log_probs, head_bucket_divergence, head_divergence
from tests.kernels.memory import largest_tensor_made
from tests.modeling.nano import relative_error

BETAS = [0.0, 0.1, 0.5, 1.0]
NUM_TOKENS, VOCABULARY, WIDTHS = 601, 53, (12, 20)


def heads(dtype: torch.dtype = torch.float64, vocabularies: tuple[int, int] = (VOCABULARY, VOCABULARY)) -> list[Any]:
    """Return student's head and hidden states, and the teacher's, which are wider."""
    torch.manual_seed(0)
    made: list[Any] = []
    for width, size in zip(WIDTHS, vocabularies, strict=True):
        made.append(nn.Linear(width, size, bias=False, dtype=dtype))
        made.append((torch.randn(NUM_TOKENS, width, dtype=dtype) * 2).requires_grad_())
    return made


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # student (1/2, 1/2), teacher (1/4, 3/4)
        (0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        (1.0, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        # mixture (3/8, 5/8)
        (
            0.5,
            0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
            + 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)),
        ),
        # mixture (7/16, 9/16)
        (
            0.25,
            0.25 * (0.25 * math.log(4 / 7) + 0.75 * math.log(4 / 3))
            + 0.75 * (0.5 * math.log(8 / 7) + 0.5 * math.log(8 / 9)),
        ),
    ],
)
def test_values_by_hand(beta: float, expected: float) -> None:
    student, teacher = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.5], [0.25, 0.75]))
    assert generalized_jsd(student, teacher, beta).item() == pytest.approx(expected, rel=1e-12)


def test_what_cannot_happen_counts_nothing_and_has_no_gradient() -> None:
    student = torch.tensor([0.5, 0.5, 0.0]).log().requires_grad_()
    teacher = torch.tensor([0.25, 0.25, 0.5]).log()
    value = relative_entropy(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert student.grad is not None and student.grad[2] == 0 and student.grad.isfinite().all()
    assert relative_entropy(teacher, student).item() == math.inf


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_by_finite_differences(beta: float) -> None:
    torch.manual_seed(1)
    student = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 7, dtype=torch.float64)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return generalized_jsd(log_softmax(student, 0.7), log_softmax(teacher, 0.7), beta)

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("beta", BETAS)
def test_logits_against_trl(beta: float, temperature: float) -> None:
    torch.manual_seed(1)
    student, teacher = (torch.randn(5, 9, VOCABULARY, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(-1, 1, (5, 9)) * 100
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    ours = generalized_jsd(log_softmax(student, temperature), log_softmax(teacher, temperature), beta)
    torch.testing.assert_close(ours[labels != -100].mean(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("beta", BETAS)
def test_heads_against_trl(beta: float, temperature: float) -> None:
    """TRL's is in fp32 whatever it is given."""
    results = []
    for is_ours in (True, False):
        student_head, student, teacher_head, teacher = heads(torch.float32)
        if is_ours:
            found = head_divergence(student_head, student, teacher_head, teacher, beta=beta, temperature=temperature)
            loss, entropy = found.divergence.mean(), found.entropy.sum()
        else:
            mask = torch.ones(1, NUM_TOKENS)
            weights = student[None], teacher[None], student_head.weight, teacher_head.weight
            loss, entropy, _ = _chunked_divergence_loss(*weights, mask, beta, temperature=temperature)
        loss.backward()
        assert teacher_head.weight.grad is None
        results.append((loss.detach(), entropy, student_head.weight.grad, student.grad))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 2e-6


@pytest.mark.parametrize("beta", BETAS)
def test_heads_in_chunks_are_the_whole_in_one(beta: float) -> None:
    results = []
    for is_chunked in (True, False):
        student_head, student, teacher_head, teacher = heads()
        if is_chunked:
            values = head_divergence(student_head, student, teacher_head, teacher, beta=beta)[0]
        else:
            logits = student_head(student), teacher_head(teacher).detach()
            values = generalized_jsd(log_softmax(logits[0]), log_softmax(logits[1]), beta)
        (values * torch.arange(NUM_TOKENS)).sum().backward()
        results.append((values.detach(), student_head.weight.grad, student.grad))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-13


def test_no_tensor_is_larger_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 32)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 32 * VOCABULARY)
    student_head, student, teacher_head, teacher = heads()

    def run() -> None:
        head_divergence(student_head, student, teacher_head, teacher, beta=1.0).divergence.sum().backward()

    # The hidden states' own gradients are larger: NUM_TOKENS by the student's width.
    assert largest_tensor_made(run) == NUM_TOKENS * WIDTHS[0] > 32 * VOCABULARY


def test_padded_vocabularies_are_compared_over_what_they_share() -> None:
    student_head, student, teacher_head, teacher = heads(vocabularies=(VOCABULARY, VOCABULARY + 11))
    cut = nn.Linear(WIDTHS[1], VOCABULARY, bias=False)
    cut.weight = nn.Parameter(teacher_head.weight[:VOCABULARY].detach())
    expected = head_divergence(student_head, student, cut, teacher, beta=0.5)
    actual = head_divergence(student_head, student, teacher_head, teacher, beta=0.5, num_shared=VOCABULARY)
    assert relative_error(actual.divergence, expected.divergence) < 1e-14


def test_a_batch_without_tokens_is_connected_to_the_head() -> None:
    student_head, student, teacher_head, teacher = heads()
    values = head_divergence(student_head, student[:0], teacher_head, teacher[:0], beta=1.0).divergence
    values.sum().backward()
    assert values.shape == (0,) and (student_head.weight.grad == 0).all()


def test_buckets_by_hand() -> None:
    log_p = torch.tensor([[0.5, 0.125, 0.25, 0.125]], dtype=torch.float64).log()
    buckets = bucket_log_probs(log_p, torch.tensor([[2, 0]])).exp()
    torch.testing.assert_close(buckets, torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64))
    everything = bucket_log_probs(log_p, torch.tensor([[2, 0, 1, 3]])).exp()
    torch.testing.assert_close(everything[:, -1], torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("beta", BETAS)
def test_buckets_of_all_tokens_are_the_whole_divergence(beta: float) -> None:
    results = []
    for is_bucketed in (True, False):
        student_head, student, teacher_head, teacher = heads()
        log_p = log_softmax(teacher_head(teacher)).detach()
        if is_bucketed:
            top, tokens = log_p.topk(VOCABULARY)
            rest = torch.full_like(top[:, :1], -1e3)
            values = head_bucket_divergence(student_head, student, tokens, torch.cat((top, rest), 1), beta=beta)[0]
        else:
            values = head_divergence(student_head, student, teacher_head, teacher, beta=beta)[0]
        values.sum().backward()
        results.append((values.detach(), student_head.weight.grad, student.grad))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_buckets_are_a_lower_bound_that_comes_closer_with_more_of_them(beta: float) -> None:
    student_head, student, teacher_head, teacher = heads()
    log_p = log_softmax(teacher_head(teacher)).detach()
    whole = head_divergence(student_head, student, teacher_head, teacher, beta=beta).divergence
    means = []
    for number in (1, 4, 16, 48):
        top, tokens = log_p.topk(number)
        teacher_buckets = torch.cat((top, torch.log1p(-top.exp().sum(-1, keepdim=True))), 1)
        values = head_bucket_divergence(student_head, student, tokens, teacher_buckets, beta=beta).divergence
        assert (values <= whole + 1e-12).all()
        means.append(values.mean().item())
    assert means == sorted(means) and means[-1] == pytest.approx(whole.mean().item(), rel=0.05)


@pytest.mark.parametrize("beta", BETAS)
def test_bucket_gradients_by_finite_differences(beta: float) -> None:
    torch.manual_seed(2)
    head = nn.Linear(3, 7, bias=False, dtype=torch.float64)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    top, tokens = torch.randn(4, 7, dtype=torch.float64).log_softmax(-1).topk(3)
    teacher = torch.cat((top, torch.log1p(-top.exp().sum(-1, keepdim=True))), 1)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return head_bucket_divergence(head, hidden, tokens, teacher, beta=beta, temperature=1.3).divergence

    assert torch.autograd.gradcheck(loss, (hidden,))
