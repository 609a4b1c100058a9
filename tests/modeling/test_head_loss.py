"""The summed loss of every kind of output head against cross entropy of its full logits, in float64."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from seeklet.modeling import head_loss
from seeklet.modeling.head_loss import head_log_probs, summed_head_loss
from seeklet.modeling.linear import SeekletLinear
from tests.kernels.memory import largest_tensor_made

T, H, V = 29, 6, 37


def plain() -> nn.Module:
    return SeekletLinear(H, V, bias=False)


def with_bias() -> nn.Module:
    return nn.Linear(H, V)


class Holder(nn.Module):
    """What PEFT needs around a head to adapt it."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = plain()


def with_adapter() -> nn.Module:
    holder = Holder()
    get_peft_model(holder, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))  # pyright: ignore
    return holder.lm_head


HEADS: list[Callable[[], nn.Module]] = [plain, with_bias, with_adapter]


@pytest.fixture(autouse=True)
def four_rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "MIN_CHUNK_ROWS", 4)


def draw(build: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a head and hidden states in float64, and targets of which a third is -100."""
    torch.manual_seed(0)
    head = build().double()
    targets = torch.randint(0, V, (T,)).where(torch.rand(T) > 0.3, -100)
    assert 0 < (targets == -100).sum() < T
    return head, torch.randn(T, H, dtype=torch.float64, requires_grad=True), targets


def expected_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden), targets, reduction="sum")


@pytest.mark.parametrize("build", HEADS)
def test_equals_cross_entropy_of_all_logits(build: Callable[[], nn.Module]) -> None:
    head, hidden, targets = draw(build)
    trained = [hidden, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    loss, expected = summed_head_loss(head, hidden, targets), expected_loss(head, hidden, targets)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss * 0.3, trained)
    torch.testing.assert_close(actual, torch.autograd.grad(expected * 0.3, trained))


@pytest.mark.parametrize("build", HEADS)
def test_a_constant_head_gets_no_gradient_and_passes_it_on(build: Callable[[], nn.Module]) -> None:
    head, hidden, targets = draw(build)
    loss = summed_head_loss(head, hidden, targets, head_is_constant=True)
    loss.backward()
    assert all(parameter.grad is None for parameter in head.parameters())
    expected = expected_loss(head, hidden, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(expected, hidden)[0])


@pytest.mark.parametrize("build", HEADS)
def test_without_labels_it_is_zero_and_still_connected(build: Callable[[], nn.Module]) -> None:
    head, hidden, targets = draw(build)
    loss = summed_head_loss(head, hidden, torch.full_like(targets, -100))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))  # pyright: ignore[reportArgumentType]
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("build", [with_bias, with_adapter])
def test_a_called_head_never_makes_all_logits(build: Callable[[], nn.Module]) -> None:
    head, hidden, targets = draw(build)
    made = largest_tensor_made(lambda: summed_head_loss(head, hidden, targets).backward())
    # A chunk of logits or the weight's gradient, whichever is larger.
    assert made <= max(4 * V, V * H) < (targets != -100).sum().item() * V


def test_a_bf16_head_is_summed_in_fp32() -> None:
    head, hidden, targets = draw(with_bias)
    loss = summed_head_loss(head.bfloat16(), hidden.bfloat16(), targets)
    assert loss.dtype == torch.float32
    logits = head(hidden.bfloat16())
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, reduction="sum"))


@pytest.mark.parametrize("build", HEADS)
def test_log_probabilities_and_entropies_of_every_kind_of_head(build: Callable[[], nn.Module]) -> None:
    head, hidden, targets = draw(build)
    parameters = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    weights = torch.randn(2, T, dtype=torch.float64)
    results = head_log_probs(head, hidden, targets, 0.7)
    log_p = (head(hidden) / 0.7).log_softmax(-1)
    kept = targets != -100
    expected = (
        log_p.gather(-1, targets.clamp(min=0)[:, None]).squeeze(-1).where(kept, 0),
        (-(log_p.exp() * log_p).sum(-1)).where(kept, 0),
    )
    for ours, wanted, weight in zip(results, expected, weights, strict=True):
        torch.testing.assert_close(ours, wanted)
        gradients = [torch.autograd.grad((x * weight).sum(), parameters, retain_graph=True) for x in (ours, wanted)]
        for gradient, wanted_gradient in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, wanted_gradient)


def test_no_label_still_reaches_the_model() -> None:
    head, hidden, targets = draw(plain)
    log_probs, _ = head_log_probs(head, hidden, torch.full_like(targets, -100))
    log_probs.sum().backward()
    assert (log_probs == 0).all() and hidden.grad is not None and (hidden.grad == 0).all()
