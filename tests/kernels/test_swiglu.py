"""SwiGLU against silu(gate) * up in float64, forward and every gradient."""

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.swiglu.reference import swiglu, swiglu_backward
from tests.kernels.memory import tensors_kept
from tests.kernels.precision import assert_as_precise_as


def plain(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    torch.autograd.gradcheck(swiglu, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errs_no_more_than_the_plain_formula(dtype: torch.dtype) -> None:
    inputs = [4 * torch.randn(17, 9, dtype=torch.float64) for _ in range(2)]
    assert_as_precise_as(swiglu, plain, inputs, dtype)


def test_large_gates_stay_finite() -> None:
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    output = swiglu(gate, torch.full_like(gate, 2.0))
    output.sum().backward()
    torch.testing.assert_close(output.detach(), torch.tensor([0.0, 0.0, 0.0, 200.0, 2e4]))
    torch.testing.assert_close(gate.grad, torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0]))


def test_halves_of_one_tensor_as_inputs() -> None:
    """As the experts give them: strided views, both gradients into one tensor."""
    both = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gate, up = both.chunk(2, -1)
    (gradient,) = torch.autograd.grad(swiglu(gate, up).square().sum(), both)
    (expected,) = torch.autograd.grad(plain(gate, up).square().sum(), both)
    torch.testing.assert_close(gradient, expected)


def test_backward_leaves_its_arguments_alone() -> None:
    tensors = [torch.randn(3, 4) for _ in range(3)]
    copies = [tensor.clone() for tensor in tensors]
    swiglu_backward(*tensors)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_keeps_only_gate_and_up() -> None:
    gate, up = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    assert tensors_kept(lambda: swiglu(gate, up)).keys() == {gate.data_ptr(), up.data_ptr()}
