"""Rotary embedding against a rotation of complex numbers in float64."""

import pytest
import torch

from seeklet.modeling.kernels.rope.reference import apply_rope, apply_rope_interleaved
from tests.kernels.precision import assert_as_precise_as

LAYOUTS = [(apply_rope, False), (apply_rope_interleaved, True)]


def angles(rows: int, length: int, size: int) -> torch.Tensor:
    """Return one angle a position and pair: (rows, S, R/2)."""
    return torch.rand(rows, length, size // 2, dtype=torch.float64) * 6


def rotate(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Return `x` with its pairs turned as complex numbers, in the layout of halves."""
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("apply", "interleaved"), LAYOUTS)
def test_turns_each_pair_by_its_angle(apply, interleaved: bool, rows: int) -> None:
    x, angle = torch.randn(2, 3, 5, 8, dtype=torch.float64), angles(rows, 5, 8)
    table = torch.cat((angle, angle), dim=-1)
    torch.testing.assert_close(apply(x, table.cos(), table.sin()), rotate(x, angle, interleaved))


@pytest.mark.parametrize(("apply", "interleaved"), LAYOUTS)
def test_gradients_are_those_of_finite_differences(apply, interleaved: bool) -> None:
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    table = torch.cat([angles(1, 3, 6)] * 2, dim=-1)
    torch.autograd.gradcheck(lambda x: apply(x, table.cos(), table.sin()), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interleaved_errs_no_more_than_de_interleaving_first(dtype: torch.dtype) -> None:
    x, table = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.cat([angles(1, 5, 8)] * 2, dim=-1)
    cos, sin = table.cos(), table.sin()

    def plain(x: torch.Tensor) -> torch.Tensor:
        halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return apply_rope(halves, cos.to(x.dtype), sin.to(x.dtype))

    def interleaved(x: torch.Tensor) -> torch.Tensor:
        return apply_rope_interleaved(x, cos.to(x.dtype), sin.to(x.dtype))

    assert_as_precise_as(interleaved, plain, [x], dtype)


@pytest.mark.parametrize(("apply", "interleaved"), LAYOUTS)
def test_product_depends_on_the_distance_only(apply, interleaved: bool) -> None:
    """Of one query and one key, at positions (3, 1) and (7, 5)."""
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64).repeat(2)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        angle = (position * frequencies)[None, None]
        return apply(x, angle.cos(), angle.sin())

    near, far = (at(query, 3) * at(key, 1)).sum(), (at(query, 7) * at(key, 5)).sum()
    torch.testing.assert_close(near, far)
    assert (near - (at(query, 3) * at(key, 2)).sum()).abs() > 1e-3
