"""How far an operator may be off: at most twice as far as PyTorch's plain formula in the same dtype."""

from collections.abc import Callable, Sequence

import torch

# Relative. In half precision what rounding the exact result alone may cost, which counts where a tensor has few
# elements; otherwise what the order of a sum makes.
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-7, torch.bfloat16: 2**-9, torch.float16: 2**-12}


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of `exact`; the plain norm where that is zero."""
    difference = torch.linalg.vector_norm(actual.double() - exact).item()
    norm = torch.linalg.vector_norm(exact).item()
    return difference / norm if norm else difference


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Return the gradient that arrived at `leaf`; there must be one."""
    assert leaf.grad is not None
    return leaf.grad


def outputs_and_gradients(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
    cotangent_dtype: torch.dtype = torch.float64,
) -> list[torch.Tensor]:
    """Return the output at `inputs` in `dtype`, then the gradient of each input under a fixed random cotangent.

    The cotangent is drawn in float64 and rounded to `cotangent_dtype`, then to the dtype of the output.
    """
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(7)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    output.backward(cotangent.to(cotangent_dtype).to(device=output.device, dtype=output.dtype))
    return [output.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_as_precise_as(
    function: Callable[..., torch.Tensor],
    plain: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Assert that output and gradients of `function` in `dtype` err at most twice as much as those of `plain`.

    Both are held against `plain` in float64, at the inputs as rounded to `dtype`.
    """
    rounded = [tensor.to(dtype).double() for tensor in inputs]
    exact = outputs_and_gradients(plain, rounded, torch.float64)
    actual = outputs_and_gradients(function, rounded, dtype)
    expected = outputs_and_gradients(plain, rounded, dtype)
    for position, (ours, theirs, truth) in enumerate(zip(actual, expected, exact, strict=True)):
        what = "output" if position == 0 else f"gradient of input {position - 1}"
        allowed = 2 * relative_error(theirs, truth) + FLOOR[dtype]
        error = relative_error(ours, truth)
        assert error <= allowed, f"{what} in {dtype}: error {error:.3g}, allowed {allowed:.3g}"
