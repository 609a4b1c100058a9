"""Distances over spans: by hand, against TRL's on the same tensors, and the mean of the sampled one is the KL's."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from trl.experimental.gold.gold_config import GOLDConfig
from trl.experimental.gold.gold_trainer import ULDLoss

from seeklet.finetune.distill import span_losses
from seeklet.finetune.distill.span_losses import last_of_spans, sampled_reverse_kl, sorted_distance, span_sums
from tests.modeling.nano import relative_error


def test_sums_and_last_tokens_by_hand() -> None:
    spans = torch.tensor([[0, 0, 1, -1], [-1, 0, 1, 2]])
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]], requires_grad=True)
    sums = span_sums(values, spans, 3)
    assert sums.tolist() == [[3, 4, 0], [32, 64, 128]]
    assert last_of_spans(spans, 3).tolist() == [[1, 2, -1], [1, 2, 3]]
    (sums * torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[1, 1, 10, 0], [0, 1, 10, 100]]


def test_sampled_reverse_kl_by_hand() -> None:
    student = torch.tensor([0.5, 0.25]).log().requires_grad_()
    values = sampled_reverse_kl(student, torch.tensor([0.25, 0.5]).log())
    torch.testing.assert_close(values.detach(), torch.tensor([math.log(2), -math.log(2)]))
    values.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([math.log(2), -math.log(2)]))


def test_the_mean_over_all_samples_is_the_reverse_kl_and_its_gradient() -> None:
    """A student that writes two tokens, of which a teacher has one: every text, weighted by its probability."""
    torch.manual_seed(0)
    first = torch.randn(3, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(9, dtype=torch.float64).log_softmax(-1)
    texts = list(itertools.product(range(3), repeat=2))
    log_p = torch.stack([first.log_softmax(-1)[a] + second.log_softmax(-1)[a, b] for a, b in texts])
    exact = (log_p.exp() * (log_p - teacher)).sum()
    expected = torch.autograd.grad(exact, (first, second), retain_graph=True)
    tokens = torch.stack([torch.stack((first.log_softmax(-1)[a], second.log_softmax(-1)[a, b])) for a, b in texts])
    sums = span_sums(tokens, torch.zeros(9, 2, dtype=torch.long), 1)[:, 0]
    sampled = (log_p.detach().exp() * sampled_reverse_kl(sums, teacher)).sum()
    assert sampled.item() == pytest.approx(exact.item(), rel=1e-12)
    for actual, wanted in zip(torch.autograd.grad(sampled, (first, second)), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-12


SPANS = ([0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 1, 2, 3, 3])


def distances(temperature: float) -> tuple[list[torch.Tensor], Any]:
    """Return ours and TRL's loss of one row of four spans with its gradient, and the student's head."""
    torch.manual_seed(0)
    # TRL scores answers from the second token on.
    width, sizes, number = 6, (11, 17), len(SPANS[0])
    hidden = [torch.randn(number + 1, width, dtype=torch.float64, requires_grad=True) for _ in SPANS]
    heads = [nn.Linear(width, size, bias=False, dtype=torch.float64) for size in sizes]
    tokens = [torch.randint(size, (number,)) for size in sizes]
    sides: list[torch.Tensor] = []
    for states, head, ids, spans in zip(hidden, heads, tokens, SPANS, strict=True):
        log_p = (head(states[:-1]) / temperature).log_softmax(-1).gather(-1, ids[:, None]).T
        places = torch.tensor([spans])
        last = last_of_spans(places, 4)[0]
        sides += [states[last], (span_sums(log_p, places, 4) - log_p[:, last])[0]]
    ours = sorted_distance(heads[0], sides[0], sides[1], heads[1], sides[2], sides[3], temperature).mean()
    config = GOLDConfig(
        output_dir="unused",
        bf16=False,
        uld_token_merge_strategy="bayesian",
        uld_crossentropy_weight=0.0,
        uld_student_temperature=temperature,
        uld_teacher_temperature=temperature,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_cpu=True,
    )
    loss = ULDLoss(config)
    # A token inside a span ends at a place where none of the other does: even ones are the student's.
    ends = []
    for side, spans in enumerate(SPANS):
        closes = [i + 1 == len(spans) or spans[i + 1] != span for i, span in enumerate(spans)]
        ends.append(
            [
                [0, 100 * span + (99 if close else 2 * i + side)]
                for i, (span, close) in enumerate(zip(spans, closes, strict=True))
            ]
        )
    labels = [torch.cat((torch.tensor([-100]), ids))[None] for ids in tokens]
    inputs = [torch.cat((torch.tensor([0]), ids))[None] for ids in tokens]
    offsets = [torch.tensor([[[0, 0], *each]]) for each in ends]
    logits = [head(states)[None] for head, states in zip(heads, hidden, strict=True)]
    theirs = loss(*logits, *labels, *inputs, student_byte_offsets=offsets[0], teacher_byte_offsets=offsets[1])
    results = []
    for value in (ours, theirs):
        gradients = torch.autograd.grad(value, (hidden[0], heads[0].weight), retain_graph=True)
        results.append((value.detach(), *gradients))
    return [torch.cat([x.flatten() for x in result]) for result in results], heads[0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sorted_distance_against_trl(temperature: float) -> None:
    (ours, theirs), _ = distances(temperature)
    assert ours[0] > 0.1 and relative_error(ours, theirs) < 1e-12


def test_sorted_distance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Student (1/2, 1/4, 1/4) behind a token of 1/2; teacher (3/4, 1/4) in one token."""
    monkeypatch.setattr(span_losses, "MIN_CHUNK_ROWS", 2)
    student, teacher = nn.Identity(), nn.Identity()
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    given = (torch.tensor([0.5]).log(), torch.zeros(1))
    value = sorted_distance(
        student, logits[0].repeat(3, 1), given[0].repeat(3), teacher, logits[1].repeat(3, 1), given[1].repeat(3)
    )
    torch.testing.assert_close(value, torch.full((3,), (0.75 - 0.25) + (0.25 - 0.125) + 0.125))


def test_sorted_distance_by_finite_differences() -> None:
    torch.manual_seed(1)
    head, teacher_head = (nn.Linear(3, size, bias=False, dtype=torch.float64) for size in (5, 7))
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    earlier = (-torch.rand(4, dtype=torch.float64)).requires_grad_()
    teacher, theirs = torch.randn(4, 3, dtype=torch.float64), -torch.rand(4, dtype=torch.float64)

    def loss(hidden: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
        return sorted_distance(head, hidden, earlier, teacher_head, teacher, theirs, 0.8)

    assert torch.autograd.gradcheck(loss, (hidden, earlier))
