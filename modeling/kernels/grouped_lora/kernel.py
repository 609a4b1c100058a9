"""The routed experts with low-rank terms in Triton: the kernels of `grouped_experts`, with factors in the same pass.

Forward and backward go once over the rows for W and for the first factor, and add the second factor's product before
they write; the gradients of the factors are sums over each expert's rows. Codes of block-fp8 become numbers on the way
into the product: neither W + s B A nor W in another dtype is ever in memory.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width, r rank

import torch

from ..grouped_experts import products
from ..grouped_experts.kernel import (
    DTYPES,
    backward_of,
    example_order,
    forward_of,
    order_again,
    sort_by_expert,
)
from ..grouped_experts.launching import Launch, configuration, run
from ..grouped_experts.matrices import Factors, Matrices
from ..launch import Configuration, device_of
from .reference import Kept, Projection, keep_if

# A tile of rows times this many numbers is held beside the output's tile.
LARGEST_RANK = 64


def takes(x: torch.Tensor, gate_up: Projection, down: Projection) -> bool:
    """Return whether the kernels take these: the dtypes, a rank that registers hold, no size of zero but tokens'."""
    return (
        x.dtype in DTYPES
        and all(_takes_weight(projection) for projection in (gate_up, down))
        and all(0 < projection.rank <= LARGEST_RANK for projection in (gate_up, down))
        and down.weight.numel() > 0
    )


def _takes_weight(projection: Projection) -> bool:
    if projection.weight_scale_inv is None:
        return projection.weight.dtype in DTYPES
    return projection.weight.dtype == torch.float8_e4m3fn


def _matrices(projection: Projection, dtype: torch.dtype) -> Matrices:
    a, b_t = (factor.contiguous() for factor in projection.factors(dtype))
    keep = None if projection.keep is None else projection.keep.contiguous()
    return Matrices(projection.weight, projection.weight_scale_inv, Factors(a, b_t, projection.scaling, keep))


def _lows(num_rows: int, gate_up: Projection, down: Projection, like: torch.Tensor) -> list[torch.Tensor]:
    """Return (S, r) for gate_up and for down, in fp32."""
    return [like.new_empty((num_rows, projection.rank), dtype=torch.float32) for projection in (gate_up, down)]


def forward(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, gate_up: Projection, down: Projection, save: bool
) -> tuple[torch.Tensor, Kept]:
    """Return the output (T, H) and what is kept if `save`, as the reference does."""
    order, counts = sort_by_expert(indices, gate_up.weight.shape[0], x.dtype)
    lows = _lows(indices.numel() if save else 0, gate_up, down, x)
    matrices = _matrices(gate_up, x.dtype), _matrices(down, x.dtype)
    output, hidden = forward_of(x, weights, order, *matrices, (lows[0], lows[1]) if save else (None, None), save)
    return output, keep_if([hidden, *lows], order.rows, counts, True)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Projection,
    down: Projection,
    kept: Kept,
    needs_factors: bool,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, weights, and of A and B of gate_up and down, as the reference does."""
    order = order_again(kept.rows, kept.counts, weights.shape[1], x.dtype)
    matrices = _matrices(gate_up, x.dtype), _matrices(down, x.dtype)
    lows = _lows(kept.rows.numel() if needs_factors else 0, gate_up, down, x)
    written = (lows[0], lows[1]) if needs_factors else (None, None)
    grad_x, grad_weights, grad_hidden, active = backward_of(
        grad, weights, order, *matrices, kept.hidden, written, needs_factors
    )
    if active is None:
        return grad_x, grad_weights, *(f.new_empty(0) for p in (gate_up, down) for f in (p.lora_a, p.lora_b))
    grads = []
    x, grad = products.dense_rows(x), products.dense_rows(grad)
    with device_of(x):
        for projection, source, out_grad, low, grad_low, tokens_in in (
            (gate_up, x, grad_hidden, kept.up_low, lows[0], True),
            (down, active, grad, kept.down_low, lows[1], False),
        ):
            experts, num_out, num_in = projection.weight.shape
            grad_a, grad_b_t = (
                x.new_empty((experts, projection.rank, size), dtype=torch.float32) for size in (num_in, num_out)
            )
            scaling, keep = projection.scaling, projection.keep
            keep = None if keep is None else keep.contiguous()
            run(products.over_rows(source, grad_low, grad_a.mT, order, tokens_in, False, scaling, keep))
            run(products.over_rows(out_grad, low, grad_b_t.mT, order, not tokens_in, False, scaling))
            grads += projection.undo_factors(grad_a, grad_b_t)
    return grad_x, grad_weights, *grads


def _examples(stored: torch.dtype, rank: int, capability: int) -> dict[str, Launch]:
    """Return the launches at DeepSeek-V3's sizes, without memory; Moonlight's are other numbers to the same kernels."""

    def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    order, fp8 = example_order(128), stored == torch.float8_e4m3fn
    scales = (numbers(256, 2, 16, 56, dtype=torch.float32), numbers(256, 56, 16, dtype=torch.float32))
    factors = [Factors(numbers(256, rank, i), numbers(256, rank, o), 2.0) for i, o in ((7168, 4096), (2048, 7168))]
    up = Matrices(numbers(256, 4096, 7168, dtype=stored), scales[0] if fp8 else None, factors[0])
    down = Matrices(numbers(256, 7168, 2048, dtype=stored), scales[1] if fp8 else None, factors[1])
    x, hidden, active, by_row = numbers(8192, 7168), numbers(65536, 4096), numbers(65536, 2048), numbers(65536, 7168)
    weights, partial = numbers(8192, 8, dtype=torch.float32), numbers(65536, 16, dtype=torch.float32)
    low = numbers(65536, rank, dtype=torch.float32)
    last = order, hidden, partial, active, low, capability
    launches = {
        "gate_up": products.gate_up(x, up, weights, order, hidden, active, low, True, capability),
        "down": products.rows(active, down, order, by_row, low, False, capability),
        "activation": products.activation(x, down, weights, hidden, *last),
        "grad_x": products.rows(hidden, up, order, by_row, low, True, capability),
    }
    if stored == torch.bfloat16 and rank == 16:
        keep = numbers(8192, 7168, dtype=torch.bool)
        grad = numbers(256, rank, 7168, dtype=torch.float32).mT
        launches["grad_a_dropout"] = products.over_rows(x, low, grad, order, True, False, 2.0, keep)
        launches["grad_b"] = products.over_rows(x, low, grad, order, True, False, 2.0)
    return launches


def configurations() -> list[Configuration]:
    """Return the kernels at ranks of 16 and 64, and beside fp32 weights, as autocast meets them, all in bf16.

    DeepSeek-V3's and Moonlight's sizes are arguments.
    """
    found = []
    stored = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}
    for capabilities in ((80,), (90, 100)):
        for weights, rank in (("bf16", 16), ("fp8", 16), ("bf16", 64), ("fp8", 64), ("fp32", 16)):
            for name, launch in _examples(stored[weights], rank, capabilities[0]).items():
                kind = "tma" if capabilities[0] >= 90 else "pointers"
                found.append(configuration(f"{name}_{weights}_r{rank}_{kind}", launch, True, capabilities))
    return found
