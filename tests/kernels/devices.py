"""Where a kernel test runs: the kernel interpreted on CPU, and on the GPU where there is one.

from tests.kernels.devices import DEVICES, kernels_on

@pytest.mark.parametrize("device", DEVICES)
def test_...(device: str) -> None:
    with kernels_on(device):
        ...  # operators take their Triton kernels for tensors on `device`
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import pytest
import torch

from seeklet.modeling.kernels import launch
from tests.kernels.precision import FLOOR, outputs_and_gradients, relative_error

DEVICES = [pytest.param("cpu", id="interpreted"), pytest.param("cuda", marks=pytest.mark.gpu)]


@contextlib.contextmanager
def kernels_on(device: str) -> Iterator[Counter[str] | None]:
    """Let operators take their Triton kernels for tensors on this device.

    What comes with it counts the launches of each kernel where they are interpreted, and is None on a GPU.
    """
    if device == "cuda":
        with mock.patch.object(launch, "_takes_triton", True):
            yield None
    else:
        from tests.kernels.interpreter import interpreted

        with interpreted() as launched:
            yield launched


def assert_kernel_as_precise_as(
    operator: Callable[..., torch.Tensor],
    plain: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
    device: str,
) -> None:
    """Assert that an operator's kernel errs at most twice as much as plain PyTorch, output and every gradient.

    Both run in `dtype` at the same inputs and cotangent, rounded to it, and are held against `plain` in float64 on
    CPU. `plain` runs outside of `kernels_on(device)`, and may so be the operator's own reference.
    """
    rounded = [tensor.to(dtype).double() for tensor in inputs]
    exact = outputs_and_gradients(plain, rounded, torch.float64, dtype)
    expected = outputs_and_gradients(plain, rounded, dtype)
    with kernels_on(device):
        actual = outputs_and_gradients(operator, [tensor.to(device) for tensor in rounded], dtype)
    for position, (ours, theirs, truth) in enumerate(zip(actual, expected, exact, strict=True)):
        what = "output" if position == 0 else f"gradient of input {position - 1}"
        allowed = 2 * relative_error(theirs, truth) + FLOOR[dtype]
        error = relative_error(ours.cpu(), truth)
        # Also false where the error is NaN, as of an element never written.
        assert error <= allowed, f"{what} in {dtype}: error {error:.3g}, allowed {allowed:.3g}"
