"""Log-probabilities and entropies of a linear head against those of the full logits, forward and both gradients."""

import math

import pytest
import torch

from seeklet.modeling.kernels.linear_log_probs import reference
from seeklet.modeling.kernels.linear_log_probs.reference import entropy_of, linear_log_probs
from tests.kernels.memory import largest_tensor_made
from tests.kernels.precision import assert_as_precise_as

T, H, V = 23, 8, 31


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return both values of every row, stacked (2, T)."""
    logits = hidden @ weight.t()
    log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    return torch.stack((log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)))


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    targets = torch.randint(0, V, (T,))
    targets[1], targets[2] = 0, V - 1
    hidden, weight = torch.randn(T, H, dtype=torch.float64), torch.randn(V, H, dtype=torch.float64)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.fixture(params=[1, 4, 23, 1000])
def rows_in_a_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut the T rows into chunks of so many, the last one shorter."""
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", request.param * V)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 1)
    return request.param


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_are_those_of_finite_differences(rows_in_a_chunk: int, temperature: float) -> None:
    hidden, weight, targets = draw()
    torch.autograd.gradcheck(
        lambda h, w: linear_log_probs(h, w, targets, temperature), (hidden, weight), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errs_no_more_than_log_softmax_of_all_logits(rows_in_a_chunk: int, dtype: torch.dtype) -> None:
    hidden, weight, targets = draw()
    assert_as_precise_as(
        lambda h, w: torch.stack(linear_log_probs(h, w, targets, 0.7)),
        lambda h, w: plain(h, w, targets, 0.7),
        (hidden, weight),
        dtype,
    )


def test_hand_computed() -> None:
    """Logits (ln 3, 0) at temperature 1 are 3/4 and 1/4; at temperature 1/2 they are 9/10 and 1/10."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64)
    weight = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    log_p, entropy = linear_log_probs(hidden, weight, torch.tensor([1]))
    assert log_p.item() == pytest.approx(math.log(1 / 4))
    assert entropy.item() == pytest.approx(3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4))
    assert linear_log_probs(hidden, weight, torch.tensor([0]), 0.5)[0].item() == pytest.approx(math.log(0.9))


def test_what_cannot_happen_has_no_entropy() -> None:
    assert entropy_of(torch.tensor([0.0, float("-inf")])).item() == 0
    hidden, weight = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    _, entropy = linear_log_probs(hidden, weight, torch.tensor([0]))
    entropy.sum().backward()
    assert entropy.item() == 0 and hidden.grad is not None and torch.isfinite(hidden.grad).all()


def test_no_tensor_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 4 * V)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 1)
    hidden, weight, targets = draw()
    assert largest_tensor_made(lambda: torch.stack(linear_log_probs(hidden, weight, targets)).sum().backward()) < T * V
