"""Triton kernels and operators of a linear head's log-probabilities, entropies and cross entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.linear_cross_entropy import op as cross_entropy_op
from seeklet.modeling.kernels.linear_cross_entropy import reference as cross_entropy_reference
from seeklet.modeling.kernels.linear_log_probs import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on
from tests.kernels.memory import largest_tensor_made, tensors_kept

DTYPES = [torch.float32, torch.bfloat16]
# tokens, hidden, vocabulary
SHAPES = [(1, 1, 1), (1, 64, 300), (3, 40, 257), (130, 72, 1030), (129, 64, 2)]


def draw(tokens: int, hidden: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states and weight in float64, and targets that hit the first and the last of the vocabulary."""
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[0], targets[-1] = 0, vocabulary - 1
    states = torch.randn(tokens, hidden, dtype=torch.float64) / hidden**0.25
    return states, torch.randn(vocabulary, hidden, dtype=torch.float64) / hidden**0.25, targets


def leaves_of(
    hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return both values of every row, stacked (2, T)."""
    logits = hidden @ weight.t()
    log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    return torch.stack((log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)))


def plain_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = hidden @ weight.t()
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the vocabulary into parts of 100 columns in backward, which is no multiple of a tile."""
    monkeypatch.setattr(kernel, "PART_ELEMENTS", 1)
    monkeypatch.setattr(kernel, "MIN_PART_COLUMNS", 100)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errs_no_more_than_log_softmax_of_all_logits(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    hidden, weight, targets = draw(*shape)
    assert_kernel_as_precise_as(
        lambda h, w: torch.stack(op.linear_log_probs(h, w, targets.to(h.device), 0.7)),
        lambda h, w: plain(h, w, targets, 0.7),
        (hidden, weight),
        dtype,
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vocabulary_in_parts(small_parts: None, dtype: torch.dtype, device: str) -> None:
    hidden, weight, targets = draw(33, 40, 350)
    assert_kernel_as_precise_as(
        lambda h, w: torch.stack(op.linear_log_probs(h, w, targets.to(h.device), 1.3)),
        lambda h, w: plain(h, w, targets, 1.3),
        (hidden, weight),
        dtype,
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_errs_no_more_than_that_of_all_logits(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    hidden, weight, targets = draw(*shape)
    targets[1::3] = -100
    assert_kernel_as_precise_as(
        lambda h, w: cross_entropy_op.linear_cross_entropy(h, w, targets.to(h.device)),
        lambda h, w: plain_loss(h, w, targets),
        (hidden, weight),
        dtype,
        device,
    )


@settings(max_examples=10, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 200), hidden=st.integers(1, 100), vocabulary=st.integers(1, 600), seed=st.integers(0, 99))
def test_any_shape(tokens: int, hidden: int, vocabulary: int, seed: int) -> None:
    torch.manual_seed(seed)
    states, weight, targets = draw(tokens, hidden, vocabulary)
    assert_kernel_as_precise_as(
        lambda h, w: torch.stack(op.linear_log_probs(h, w, targets)),
        lambda h, w: plain(h, w, targets, 1.0),
        (states, weight),
        torch.bfloat16,
        "cpu",
    )


@pytest.mark.parametrize("device", DEVICES)
def test_all_rows_ignored(device: str) -> None:
    hidden, weight, _ = (tensor.float().to(device).requires_grad_() for tensor in draw(5, 8, 31))
    with kernels_on(device):
        loss = cross_entropy_op.linear_cross_entropy(hidden, weight, torch.full((5,), -100, device=device))
        loss.backward()
    assert loss.item() == 0
    for leaf in (hidden, weight):
        assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_another_ignored_index_and_a_scaled_loss(device: str) -> None:
    """What is ignored may be a token of the vocabulary; the loss is scaled before its gradient is known."""
    hidden, weight, targets = draw(9, 8, 31)
    targets[::2] = 5
    leaves = leaves_of(hidden.to(device), weight.to(device))
    with kernels_on(device):
        loss = cross_entropy_op.linear_cross_entropy(*leaves, targets.to(device), 5) * -0.37
        gradients = torch.autograd.grad(loss, leaves)
    others = leaves_of(hidden, weight)
    expected = cross_entropy_reference.linear_cross_entropy(*others, targets, 5) * -0.37
    torch.testing.assert_close(loss.cpu(), expected)
    torch.testing.assert_close([each.cpu() for each in gradients], list(torch.autograd.grad(expected, others)))


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows(device: str) -> None:
    hidden = torch.empty(0, 8, device=device, requires_grad=True)
    weight = torch.randn(31, 8, device=device, requires_grad=True)
    targets = torch.empty(0, dtype=torch.int64, device=device)
    with kernels_on(device):
        loss = cross_entropy_op.linear_cross_entropy(hidden, weight, targets)
        loss.backward()
        log_probs, entropy = op.linear_log_probs(hidden, weight, targets)
    assert loss.item() == 0 and weight.grad is not None and not weight.grad.any()
    assert log_probs.shape == entropy.shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("trained", ["hidden", "weight", "none"])
def test_frozen_inputs_get_no_gradient(trained: str, device: str) -> None:
    hidden, weight, targets = (tensor.to(device) for tensor in draw(7, 8, 31))
    hidden, weight = hidden.float(), weight.float()
    hidden.requires_grad_(trained == "hidden")
    weight.requires_grad_(trained == "weight")
    with kernels_on(device):
        log_probs, entropy = op.linear_log_probs(hidden, weight, targets)
        if trained == "none":
            assert not log_probs.requires_grad and not entropy.requires_grad
            return
        (log_probs - entropy).sum().backward()
    leaf, frozen = (hidden, weight) if trained == "hidden" else (weight, hidden)
    assert frozen.grad is None
    expected = reference.linear_log_probs(hidden, weight, targets)
    torch.testing.assert_close(leaf.grad, torch.autograd.grad((expected[0] - expected[1]).sum(), leaf)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", [0, 1], ids=["log_probs", "entropy"])
def test_only_one_of_the_two_is_used(which: int, device: str) -> None:
    hidden, weight, targets = (tensor.to(device) for tensor in draw(7, 8, 31))
    leaf, other = (hidden.float().requires_grad_() for _ in range(2))
    with kernels_on(device):
        op.linear_log_probs(leaf, weight.float(), targets)[which].square().sum().backward()
    reference.linear_log_probs(other, weight.float(), targets)[which].square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_large_logits(device: str) -> None:
    """Neither overflow nor NaN; what cannot happen has no entropy."""
    hidden, weight, targets = (tensor.to(device) for tensor in draw(9, 8, 301))
    leaf, other = ((1000 * hidden).float().requires_grad_() for _ in range(2))
    with kernels_on(device):
        values = torch.stack(op.linear_log_probs(leaf, weight.float(), targets))
        values.sum().backward()
    expected = torch.stack(reference.linear_log_probs(other, weight.float(), targets))
    expected.sum().backward()
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-3)
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_strided_inputs_and_gradients(device: str) -> None:
    hidden, weight, targets = (tensor.to(device) for tensor in draw(7, 8, 31))
    for states in (F.pad(hidden, (3, 2)).float()[:, 3:11], hidden.float().t().contiguous().t()):
        for matrix in (weight.float().t().contiguous().t(), F.pad(weight, (0, 8)).float()[:, :8]):
            leaves, others = leaves_of(states, matrix), leaves_of(states, matrix)
            cotangent = torch.randn(7, 3, device=device)[:, 1]
            with kernels_on(device):
                actual = torch.autograd.grad(op.linear_log_probs(*leaves, targets)[0], leaves, cotangent)
            expected = torch.autograd.grad(reference.linear_log_probs(*others, targets)[0], others, cotangent)
            torch.testing.assert_close(actual, expected)


def test_autocast_is_obeyed() -> None:
    hidden, weight, targets = draw(7, 8, 31)
    hidden, weight = hidden.float(), weight.float()
    with kernels_on("cpu"), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_op.linear_cross_entropy(hidden, weight, targets)
        log_probs, _ = op.linear_log_probs(hidden, weight, targets)
    exact = plain(hidden.bfloat16().double(), weight.bfloat16().double(), targets, 1.0)[0]
    torch.testing.assert_close(log_probs.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, -log_probs.sum())


def test_no_logits_and_no_second_weight() -> None:
    hidden, weight, targets = draw(200, 16, 5000)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16()
    with kernels_on("cpu"):
        assert kernel.MIN_PART_COLUMNS < 5000
        made = largest_tensor_made(
            lambda: torch.stack(op.linear_log_probs(hidden, weight, targets)).sum(), inside=[op._forward]
        )
        kept = tensors_kept(lambda: op.linear_log_probs(hidden, weight, targets))
    # The interpreter makes tensors of its tiles.
    assert made <= 128 * 256
    assert sorted(tensor.numel() for tensor in kept.values()) == [200] * 4 + [200 * 16, 5000 * 16]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_entropy", [False, True])
def test_registered_as_torch_asks(with_entropy: bool, device: str) -> None:
    hidden, weight, targets = (tensor.to(device) for tensor in draw(5, 8, 31))
    leaves = leaves_of(hidden, weight)
    with kernels_on(device):
        torch.library.opcheck(op._forward, (*leaves, targets, 0.5, with_entropy))


def test_compiled_without_a_graph_break() -> None:
    hidden, weight, targets = draw(5, 8, 31)
    leaves, others = leaves_of(hidden, weight), leaves_of(hidden, weight)
    compiled = torch.compile(cross_entropy_op.linear_cross_entropy, backend="aot_eager", fullgraph=True)
    with kernels_on("cpu"):
        actual = torch.autograd.grad(compiled(*leaves, targets), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(plain_loss(*others, targets), others))


def test_the_operator_on_cpu_is_the_reference() -> None:
    hidden, weight, targets = draw(7, 8, 31)
    leaves, others = leaves_of(hidden, weight, torch.float64), leaves_of(hidden, weight, torch.float64)
    actual, expected = op.linear_log_probs(*leaves, targets, 0.6), reference.linear_log_probs(*others, targets, 0.6)
    assert torch.equal(torch.stack(actual), torch.stack(expected))
    gradients = torch.autograd.grad(torch.stack(actual).sum(), leaves)
    assert all(map(torch.equal, gradients, torch.autograd.grad(torch.stack(expected).sum(), others)))
    loss = cross_entropy_op.linear_cross_entropy(*leaves, targets)
    assert torch.equal(loss, cross_entropy_reference.linear_cross_entropy(*others, targets))
    [alone] = torch.autograd.grad(op.linear_log_probs_alone(*leaves, targets).sum(), leaves[:1])
    torch.testing.assert_close(alone, -torch.autograd.grad(loss, leaves[0])[0])


def test_the_kernel_is_what_runs_where_it_takes_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = draw(5, 8, 31)
    seen = []
    original = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *given: seen.append(given[0].dtype) or original(*given))
    with kernels_on("cpu"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            op.linear_log_probs(hidden.to(dtype), weight.to(dtype), targets)
            cross_entropy_op.linear_cross_entropy(hidden.to(dtype), weight.to(dtype), targets)
    op.linear_log_probs(hidden.float(), weight.float(), targets)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_second_derivatives_are_refused() -> None:
    hidden, weight, targets = draw(3, 8, 31)
    value = op.linear_log_probs(hidden.requires_grad_(), weight, targets)[0].sum()
    with pytest.raises(RuntimeError, match="linear_log_probs has no second derivative"):
        torch.autograd.grad(value, hidden, create_graph=True)
