"""The same bits in whichever order programs run: what one writes no other reads or adds to, or only as integers."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

import triton
import triton.language as tl

from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from seeklet.modeling.kernels.grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from seeklet.modeling.kernels.linear.op import fp8_linear
from seeklet.modeling.kernels.router.op import route_and_count
from tests.kernels import test_grouped_experts, test_grouped_fp8, test_grouped_lora
from tests.kernels.interpreter import Builder, interpreted
from tests.kernels.test_grouped_experts import Case

SMALL = Case(10, 72, 3, 2, 40)


@contextlib.contextmanager
def last_program_first() -> Iterator[None]:
    """Run the programs of each launch from the last to the first."""
    plain = Builder.set_grid_idx

    def reversed_order(self, *place: int) -> None:
        plain(self, *(size - 1 - index for size, index in zip(self.grid_dim, place, strict=True)))

    with mock.patch.object(Builder, "set_grid_idx", reversed_order):
        yield


Run = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def experts() -> tuple[Run, list[torch.Tensor]]:
    indices, inputs = test_grouped_experts.draw(SMALL)
    return lambda x, *rest: grouped_experts(x, indices, *rest), inputs


def low_rank() -> tuple[Run, list[torch.Tensor]]:
    indices, projections, inputs = test_grouped_lora.draw(test_grouped_lora.Case(10, 72, 3, 2, 40, r=4))
    dense = [projection.float() for projection in projections]
    return lambda x, w, *factors: test_grouped_lora.split(x, indices, w, dense, factors), inputs


def fp8() -> tuple[Run, list[torch.Tensor]]:
    indices, stored, inputs = test_grouped_fp8.draw(SMALL)
    return lambda x, weights: grouped_fp8(x, indices, weights, *stored), inputs


def both_in_fp8() -> tuple[Run, list[torch.Tensor]]:
    indices, stored, inputs = test_grouped_fp8.draw(SMALL)
    return lambda x, weights: grouped_fp8_quantized(x, indices, weights, *stored), inputs


def fp8_product() -> tuple[Run, list[torch.Tensor]]:
    codes, scale = torch.randn(200, 140).to(torch.float8_e4m3fn), torch.rand(2, 2)
    return lambda x: fp8_linear(x, codes, scale), [torch.randn(40, 140)]


def router() -> tuple[Run, list[torch.Tensor]]:
    settings = {"scoring_func": "sigmoid", "n_group": 4, "topk_group": 2, "top_k": 4}
    bias = torch.randn(32)

    def run(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return route_and_count(logits, bias, **settings, norm_topk_prob=True, routed_scaling_factor=2.5)

    return run, [torch.randn(50, 32)]


@pytest.mark.parametrize("draw", [experts, low_rank, fp8, both_in_fp8, fp8_product, router])
def test_the_same_bits_in_any_order_of_programs(draw: Callable[[], tuple[Run, list[torch.Tensor]]]) -> None:
    run, inputs = draw()
    leaves = [tensor.float().requires_grad_() for tensor in inputs]
    results = []
    with interpreted():
        for order in (contextlib.nullcontext(), last_program_first()):
            with order:
                found = run(*leaves)
                outputs = found if isinstance(found, tuple) else (found,)
                results.append([*outputs, *torch.autograd.grad(outputs[0].square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_order_is_another() -> None:
    """Or else the test above says nothing: a sum of floats by atomics would come out otherwise."""

    @triton.jit
    def add(values_ptr, total_ptr):
        tl.atomic_add(total_ptr, tl.load(values_ptr + tl.program_id(0)))

    values, totals = torch.tensor([1.0, 1e8, -1e8]), torch.zeros(2)
    with interpreted():
        add[(3,)](values, totals)
        with last_program_first():
            add[(3,)](values, totals[1:])
    # 1e8 swallows the 1 if that comes first.
    assert totals.tolist() == [0.0, 1.0]
