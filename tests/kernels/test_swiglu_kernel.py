"""SwiGLU's Triton kernels and operator against the reference: forward and both gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling.kernels.swiglu import kernel, op, reference
from tests.kernels.devices import DEVICES, assert_kernel_as_precise_as, kernels_on

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int) -> list[torch.Tensor]:
    return [4 * torch.randn(shape, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (17, 9), (2, 3, 1025), (0, 4)])
def test_errs_no_more_than_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    assert_kernel_as_precise_as(op.swiglu, reference.swiglu, draw(*shape), dtype, device)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(1, 6), columns=st.integers(1, 1500), seed=st.integers(0, 99))
def test_halves_of_one_tensor_of_any_shape(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    [both, _] = draw(rows, 2 * columns)
    assert_kernel_as_precise_as(
        lambda x: op.swiglu(*x.chunk(2, -1)), lambda x: reference.swiglu(*x.chunk(2, -1)), [both], torch.bfloat16, "cpu"
    )


@pytest.mark.parametrize("device", DEVICES)
def test_transposed_inputs_and_an_expanded_gradient(device: str) -> None:
    gate, up = torch.randn(2, 8, 5, device=device)
    leaves = [gate.t().requires_grad_(), up.t().contiguous().requires_grad_()]
    with kernels_on(device):
        gradients = torch.autograd.grad(op.swiglu(*leaves).sum(), leaves)
    expected = torch.autograd.grad(reference.swiglu(*leaves).sum(), leaves)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_large_gates_stay_finite(device: str) -> None:
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=device, requires_grad=True)
    with kernels_on(device):
        output = op.swiglu(gate, torch.full_like(gate, 2.0))
        output.sum().backward()
    torch.testing.assert_close(output.detach().cpu(), torch.tensor([0.0, 0.0, 0.0, 200.0, 2e4]))
    assert gate.grad is not None
    torch.testing.assert_close(gate.grad.cpu(), torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0]))


@pytest.mark.parametrize("device", DEVICES)
def test_registered_as_torch_asks(device: str) -> None:
    gate, up = (torch.randn(2, 3, 8, device=device, requires_grad=True) for _ in range(2))
    both = torch.randn(3, 8, device=device, requires_grad=True)
    with kernels_on(device):
        torch.library.opcheck(op._forward, (gate, up))
        torch.library.opcheck(op._forward, both.chunk(2, -1))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device: str) -> None:
    gate, up = (torch.randn(3, 8, device=device, requires_grad=True) for _ in range(2))
    compiled = torch.compile(lambda gate, up: op.swiglu(gate, up).square(), backend="aot_eager", fullgraph=True)
    with kernels_on(device):
        gradients = torch.autograd.grad(compiled(gate, up).sum(), (gate, up))
    expected = torch.autograd.grad(reference.swiglu(gate, up).square().sum(), (gate, up))
    torch.testing.assert_close(gradients, expected)


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "forward", lambda gate, up: gate.clone())
    gate, up = torch.randn(2, 3, 4)
    with kernels_on("cpu"):
        assert torch.equal(op.swiglu(gate, up), gate)
    assert torch.equal(op.swiglu(gate, up), reference.swiglu(gate, up))


def test_what_does_not_fit_together_is_told() -> None:
    with pytest.raises(ValueError, match=r"gate is \(2, 4\) torch.float32, up \(2, 5\)"):
        op.swiglu(torch.ones(2, 4), torch.ones(2, 5))
