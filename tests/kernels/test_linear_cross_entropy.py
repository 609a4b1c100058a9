"""Cross entropy of a linear head against F.cross_entropy over the full logits, forward and both gradients."""

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.linear_cross_entropy import reference
from seeklet.modeling.kernels.linear_cross_entropy.reference import linear_cross_entropy
from tests.kernels.memory import largest_tensor_made
from tests.kernels.precision import assert_as_precise_as, gradient

T, H, V = 23, 8, 31


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = hidden @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="sum")


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float64 hidden (T, H) and weight (V, H), leaves, and targets (T,), three of them -100."""
    targets = torch.randint(0, V, (T,))
    # The first and the last of the vocabulary are hit.
    targets[1], targets[2] = 0, V - 1
    targets[[0, 5, 22]] = -100
    hidden, weight = torch.randn(T, H, dtype=torch.float64), torch.randn(V, H, dtype=torch.float64)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.fixture(params=[1, 4, 23, 1000])
def rows_in_a_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut the T rows into chunks of so many, the last one shorter."""
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", request.param * V)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 1)
    return request.param


def test_gradients_are_those_of_finite_differences(rows_in_a_chunk: int) -> None:
    hidden, weight, targets = draw()
    torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_errs_no_more_than_cross_entropy_of_all_logits(rows_in_a_chunk: int, dtype: torch.dtype) -> None:
    hidden, weight, targets = draw()
    assert_as_precise_as(
        lambda h, w: linear_cross_entropy(h, w, targets),
        lambda h, w: plain(h, w, targets),
        (hidden, weight),
        dtype,
    )


def test_hand_computed() -> None:
    """Logits (0, 0) and (ln 3, 0): -ln(1/2) - ln(1/4) = ln 8."""
    hidden = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weight = torch.tensor([[torch.tensor(3.0, dtype=torch.float64).log()], [0.0]], dtype=torch.float64)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor(8.0, dtype=torch.float64).log())


def test_ignored_rows_count_nothing_at_all(rows_in_a_chunk: int) -> None:
    hidden, weight, _ = draw()
    loss = linear_cross_entropy(hidden, weight, torch.full((T,), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(gradient(hidden), torch.zeros_like(hidden))
    assert torch.equal(gradient(weight), torch.zeros_like(weight))


def test_another_ignored_index() -> None:
    hidden, weight, targets = draw()
    expected = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(linear_cross_entropy(hidden, weight, targets.masked_fill(targets == -100, -1), -1), expected)


@pytest.mark.parametrize("trained", ["hidden", "weight", "none"])
def test_frozen_inputs_get_no_gradient(trained: str) -> None:
    hidden, weight, targets = draw()
    hidden.requires_grad_(trained == "hidden")
    weight.requires_grad_(trained == "weight")
    loss, expected = linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    if trained == "none":
        assert not loss.requires_grad
        return
    leaf, frozen = (hidden, weight) if trained == "hidden" else (weight, hidden)
    loss.backward()
    assert frozen.grad is None
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(expected, leaf)[0])


def test_loss_scaled_afterwards_scales_the_gradients() -> None:
    """They are computed in the forward pass, before the scale is known."""
    hidden, weight, targets = draw()
    actual = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets) * -0.37, (hidden, weight))
    expected = torch.autograd.grad(plain(hidden, weight, targets) * -0.37, (hidden, weight))
    torch.testing.assert_close(actual, expected)


def test_backward_twice_gives_the_same() -> None:
    hidden, weight, targets = draw()
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss * 2, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss * 2, (hidden, weight)), first)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = draw()
    hidden, weight = ((100 * leaf).float().detach().requires_grad_() for leaf in (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    torch.testing.assert_close(loss, plain(hidden, weight, targets))
    assert gradient(hidden).isfinite().all() and gradient(weight).isfinite().all()


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 4 * V)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 1)
    hidden, weight, targets = draw()
    # The gradient of the head's weight is larger than a chunk of logits, and needed.
    assert largest_tensor_made(lambda: linear_cross_entropy(hidden, weight, targets)) == V * H < T * V


def test_compiled_equals_plain() -> None:
    hidden, weight, targets = draw()
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    loss, expected = compiled(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(actual, torch.autograd.grad(expected, (hidden, weight)))
