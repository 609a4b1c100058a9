"""Models whose layers are replaced by interpreted kernels, and what they launch."""

from collections.abc import Callable
from typing import Any

import torch

import seeklet
from tests.kernels.interpreter import interpreted
from tests.modeling.nano import build_ours


def build(**overrides: Any) -> Any:
    """Return a nano model of a dense and a mixture-of-experts layer."""
    return build_ours(**{"num_hidden_layers": 2, **overrides})


def kernelized(model: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what `run` does and which kernels it launched, with the model's layers replaced."""
    with interpreted() as launched:
        seeklet.kernelize(model, quiet=True)
        result = run()
    return result, launched


def assert_close(actual: Any, expected: Any) -> None:
    """Assert that tensors, or lists or dictionaries of them, differ by fp32 rounding alone."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
