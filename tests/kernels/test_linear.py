"""Linear layers through oneDNN in row blocks against F.linear in float64, forward and every gradient."""

import pytest
import torch
from torch.nn import functional as F

from seeklet.modeling.kernels.linear import reference
from seeklet.modeling.kernels.linear.reference import linear, matmul, matmul_over_rows
from tests.kernels.precision import FLOOR, assert_as_precise_as, gradient, relative_error

# Below, at and above what rows are filled up to, and whole blocks of 32 and of 256.
ROWS = [1, 8, 31, 32, 33, 70, 255, 256, 260, 300]


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send products of any size to oneDNN."""
    monkeypatch.setattr(reference, "MIN_PRODUCTS", 1)


def draw(rows: int, inner: int = 11, outer: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float64 x (rows, inner), weight (outer, inner) and bias (outer,)."""
    return (
        torch.randn(rows, inner, dtype=torch.float64),
        torch.randn(outer, inner, dtype=torch.float64),
        torch.randn(outer, dtype=torch.float64),
    )


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_errs_no_more_than_pytorchs_linear(rows: int, dtype: torch.dtype) -> None:
    assert_as_precise_as(linear, F.linear, draw(rows), dtype)
    x, weight, _ = draw(rows)
    assert_as_precise_as(linear, F.linear, (x, weight), dtype)


@pytest.mark.parametrize("shape", [(11,), (1, 11), (2, 40, 11), (3, 2, 20, 11), (2, 0, 11), (0, 11)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight, bias = torch.randn(7, 11, requires_grad=True), torch.randn(7, requires_grad=True)
    actual, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(actual, (x, weight, bias), cotangent)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, weight, bias), cotangent))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_fp32_rows_go_to_onednn_in_few_different_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """33 rows filled up to 48, 300 as 256 and 44 filled up to 48; summed over are whole blocks of rows only.

    Without it the tests above would compare PyTorch with itself.
    """
    seen: list[int] = []
    original = reference._onednn
    monkeypatch.setattr(reference, "_onednn", lambda a, b: seen.append(a.shape[0]) or original(a, b))
    x, weight, _ = (tensor.float() for tensor in draw(33))
    linear(x, weight)
    linear(x[:31], weight)
    linear(x.bfloat16(), weight.bfloat16())
    assert seen == [48]
    matmul(torch.randn(300, 11), weight.t())
    matmul(torch.randn(7, 11), weight.t())
    assert seen == [48, 256, 48]
    matmul_over_rows(torch.randn(33, 11), torch.randn(33, 7))
    assert seen == [48, 256, 48, 11]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_matmul_takes_any_strides(rows: int, transposed: tuple[bool, bool]) -> None:
    a, b = torch.randn(rows, 11), torch.randn(11, 7)
    exact = a.double() @ b.double()
    a, b = (t.t().contiguous().t() if turn else t for t, turn in zip((a, b), transposed, strict=True))
    allowed = 2 * relative_error(torch.mm(a, b), exact) + FLOOR[torch.float32]
    assert relative_error(matmul(a, b), exact) <= allowed
    out = torch.empty(rows, 7)
    assert matmul(a, b, out) is out
    assert relative_error(out, exact) <= allowed


@pytest.mark.parametrize("rows", ROWS)
def test_matmul_over_rows_sums_all_of_them(rows: int) -> None:
    a, b = torch.randn(rows, 11), torch.randn(rows, 7)
    exact = a.double().t() @ b.double()
    allowed = 2 * relative_error(torch.mm(a.t(), b), exact) + FLOOR[torch.float32]
    assert relative_error(matmul_over_rows(a, b), exact) <= allowed
    out = torch.empty(11, 7)
    assert matmul_over_rows(a, b, out) is out
    assert relative_error(out, exact) <= allowed


def test_non_contiguous_input_and_expanded_gradient() -> None:
    x = torch.randn(11, 40).t().requires_grad_()
    weight = torch.randn(11, 7).t().requires_grad_()
    assert not x.is_contiguous() and not weight.is_contiguous()
    actual = torch.autograd.grad(linear(x, weight).sum(), (x, weight))
    torch.testing.assert_close(actual, torch.autograd.grad(F.linear(x, weight).sum(), (x, weight)))


@pytest.mark.parametrize("trained", [0, 1, 2], ids=["x", "weight", "bias"])
def test_frozen_tensors_get_no_gradient(trained: int) -> None:
    leaves = [tensor.float() for tensor in draw(40)]
    leaves[trained].requires_grad_()
    cotangent = torch.randn(40, 7)
    linear(leaves[0], leaves[1], leaves[2]).backward(cotangent)
    [expected] = torch.autograd.grad(F.linear(leaves[0], leaves[1], leaves[2]), leaves[trained], cotangent)
    torch.testing.assert_close(gradient(leaves[trained]), expected)
    assert [leaf.grad is not None for leaf in leaves] == [position == trained for position in range(3)]


def test_a_frozen_weight_keeps_no_input() -> None:
    """As LoRA has it: the weight is frozen, and the gradient only passes through."""
    x, weight, bias = (tensor.float() for tensor in draw(40))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        linear(x.requires_grad_(), weight, bias)
    assert kept == [weight.shape]


def test_autocast_is_obeyed() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert actual.dtype == torch.bfloat16 and torch.equal(actual, expected)


def test_compiled_equals_eager() -> None:
    x, weight, bias = (tensor.float().requires_grad_() for tensor in draw(40))
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(x, weight, bias).square().sum(), (x, weight, bias))
    expected = torch.autograd.grad(F.linear(x, weight, bias).square().sum(), (x, weight, bias))
    torch.testing.assert_close(actual, expected)
