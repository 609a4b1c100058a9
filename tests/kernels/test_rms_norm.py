"""RMSNorm against the formula in float64, forward and every gradient."""

import pytest
import torch

from seeklet.modeling.kernels.rms_norm.reference import rms_norm
from tests.kernels.memory import tensors_kept
from tests.kernels.precision import assert_as_precise_as

EPS = 1e-6
SHAPES = [(1, 1), (5, 7), (2, 3, 64), (2, 1, 3, 33)]


def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As published: statistics in fp32, rounded before the weight."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def draw(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, dtype=torch.float64), torch.rand(shape[-1], dtype=torch.float64) + 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    x, weight = draw(shape)
    torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_errs_no_more_than_the_plain_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_as_precise_as(lambda x, w: rms_norm(x, w, EPS), plain, draw(shape), dtype)


def test_hand_computed() -> None:
    """Mean square of (3, -4) is 12.5."""
    output = rms_norm(torch.tensor([3.0, -4.0], dtype=torch.float64), torch.tensor([1.0, 2.0]).double(), 0.0)
    root = 12.5**0.5
    torch.testing.assert_close(output, torch.tensor([3 / root, -8 / root], dtype=torch.float64))


def test_epsilon_keeps_a_row_of_zeros_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    output = rms_norm(x, torch.ones(4), EPS)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, 4))
    assert x.grad is not None and x.grad.isfinite().all()


def test_non_contiguous_input_and_gradient() -> None:
    x, weight = draw((6, 4))
    x = x.t()[::2].requires_grad_()
    weight = torch.rand(6, dtype=torch.float64)
    cotangent = torch.randn(6, 2, dtype=torch.float64).t()
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, EPS), x, cotangent)
    (expected,) = torch.autograd.grad(plain(x, weight), x, cotangent)
    torch.testing.assert_close(gradient, expected)


def test_frozen_weight_gets_no_gradient() -> None:
    x, weight = draw((3, 4))
    rms_norm(x.requires_grad_(), weight, EPS).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_keeps_only_its_input_and_one_number_a_row() -> None:
    x, weight = torch.randn(8, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    kept = tensors_kept(lambda: rms_norm(x, weight, EPS))
    assert sorted(tensor.numel() for tensor in kept.values()) == [8, 32, 8 * 32]


def test_compiled_equals_plain() -> None:
    x, weight = draw((3, 5))
    compiled = torch.compile(lambda x, w: rms_norm(x, w, EPS), backend="aot_eager", fullgraph=True)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    others = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    compiled(*leaves).square().sum().backward()
    plain(*others).square().sum().backward()
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)
