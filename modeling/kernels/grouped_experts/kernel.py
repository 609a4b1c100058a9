"""The routed experts in Triton: sorted, gathered, multiplied, activated and summed up without a look by the host.

Forward: gate_up (gather, product, SwiGLU, routing weight), rows (product, to the place of token and choice), sum.
Backward: activation, rows, sum, and over_rows for the gradients of the weights.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width

import torch

from ..launch import Configuration, device_of
from . import products, sort
from .launching import Launch, configuration, run
from .matrices import Matrices
from .products import Sorted
from .tiling import block_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: torch.Tensor, gate_up_proj: torch.Tensor, down_proj: torch.Tensor) -> bool:
    """Return whether the kernels take these: one dtype, and no size of zero but that of tokens."""
    return x.dtype in DTYPES and x.dtype == gate_up_proj.dtype == down_proj.dtype and down_proj.numel() > 0


def sort_by_expert(
    indices: torch.Tensor, num_experts: int, dtype: torch.dtype, most_rows: int = 128
) -> tuple[Sorted, torch.Tensor]:
    """Return the order of the rows, and how many each expert gets (E,); tiles have at most so many rows."""
    size = min(most_rows, block_rows(dtype, indices.numel(), num_experts))
    rows, counts, tiles = sort.sort_rows(indices, num_experts, size)
    return Sorted(rows, tiles, indices.shape[1]), counts


def order_again(rows: torch.Tensor, counts: torch.Tensor, top_k: int, dtype: torch.dtype) -> Sorted:
    """Return the order as `sort_by_expert` did, of the rows and counts that were kept."""
    size = block_rows(dtype, rows.numel(), counts.numel())
    return Sorted(rows, sort.make_tiles(counts, rows.numel(), size), top_k)


def forward_of(
    x: torch.Tensor,
    weights: torch.Tensor,
    order: Sorted,
    gate_up: Matrices,
    down: Matrices,
    lows: tuple[torch.Tensor | None, torch.Tensor | None],
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (T, H) and gate_up (S, 2I), empty unless `save`; fill `lows` (S, r) for factors, if `save`."""
    num_rows, width = order.rows.numel(), gate_up.weight.shape[1] // 2
    hidden = x.new_empty(num_rows if save else 0, 2 * width)
    active, by_row = x.new_empty(num_rows, width), x.new_empty(num_rows, x.shape[1])
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, weights, capability = products.dense_rows(x), weights.contiguous(), products.chip(x)
    with device_of(x):
        run(products.gate_up(x, gate_up, weights, order, hidden, active, lows[0], save, capability))
        run(products.rows(active, down, order, by_row, lows[1], False, capability))
        run(products.sum_by_token(by_row, output))
    return output, hidden


def forward(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,), as the reference does."""
    order, counts = sort_by_expert(indices, gate_up_proj.shape[0], x.dtype)
    output, hidden = forward_of(x, weights, order, Matrices(gate_up_proj), Matrices(down_proj), (None, None), save)
    return output, hidden, order.rows, counts


def backward_of(
    grad: torch.Tensor,
    weights: torch.Tensor,
    order: Sorted,
    gate_up: Matrices,
    down: Matrices,
    hidden: torch.Tensor,
    lows: tuple[torch.Tensor | None, torch.Tensor | None],
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the gradients of x (T, H), weights (T, K) and gate_up's output (S, 2I), and if `save` the activation.

    `lows` (S, r), of gate_up and of down, are filled with what the factors B make of the gradients, unscaled.
    """
    capability, num_rows, width = products.chip(grad), order.rows.numel(), down.weight.shape[2]
    columns = products.activation_columns(grad.dtype, down, order, capability)
    partial = grad.new_empty((num_rows, -(-width // columns)), dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden)
    active = grad.new_empty(num_rows, width) if save else None
    by_row = grad.new_empty(num_rows, grad.shape[1])
    grad_x = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    grad = products.dense_rows(grad)
    last = partial, active, lows[1], capability
    with device_of(grad):
        run(products.activation(grad, down, weights.contiguous(), hidden, order, grad_hidden, *last))
        run(products.rows(grad_hidden, gate_up, order, by_row, lows[0], True, capability))
        run(products.sum_by_token(by_row, grad_x))
    return grad_x, partial.sum(-1).view(weights.shape).to(weights.dtype), grad_hidden, active


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    needs_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of (x, weights, gate_up_proj, down_proj), as the reference does."""
    order = order_again(rows, counts, weights.shape[1], x.dtype)
    matrices = Matrices(gate_up_proj), Matrices(down_proj)
    grad_x, grad_weights, grad_hidden, active = backward_of(
        grad, weights, order, *matrices, gate_up, (None, None), needs_weights
    )
    if active is None:
        return grad_x, grad_weights, gate_up_proj.new_empty(0), down_proj.new_empty(0)
    grad_gate_up, grad_down = torch.empty_like(gate_up_proj), torch.empty_like(down_proj)
    x, grad = products.dense_rows(x), products.dense_rows(grad)
    with device_of(x):
        run(products.over_rows(grad_hidden, x, grad_gate_up, order, gather_b=True))
        run(products.over_rows(grad, active, grad_down, order, gather_a=True))
    return grad_x, grad_weights, grad_gate_up, grad_down


def example_order(rows: int) -> Sorted:
    """Return the order of DeepSeek-V3's 8192 tokens to 8 of 256 experts in tiles of so many rows, without memory."""
    tiles = sort.unfilled_tiles(65536, 256, rows, sort.META)
    return Sorted(torch.empty(65536, dtype=torch.int64, device="meta"), tiles, 8)


def _examples(rows: int, capability: int) -> dict[str, Launch]:
    """Return the launches at DeepSeek-V3's sizes, without memory; Moonlight's are other numbers to the same kernels."""

    def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    order, save = example_order(rows), rows == 128
    gate_up_proj, down_proj = numbers(256, 4096, 7168), numbers(256, 7168, 2048)
    x, hidden, active, by_row = numbers(8192, 7168), numbers(65536, 4096), numbers(65536, 2048), numbers(65536, 7168)
    weights, partial = numbers(8192, 8, dtype=torch.float32), numbers(65536, 16, dtype=torch.float32)
    up, down = Matrices(gate_up_proj), Matrices(down_proj)
    launches = {
        "gate_up": products.gate_up(x, up, weights, order, hidden, active, None, save, capability),
        "down": products.rows(active, down, order, by_row, None, False, capability),
    }
    if save:
        last = order, hidden, partial, active, None, capability
        launches |= {
            "activation": products.activation(x, down, weights, hidden, *last),
            "grad_x": products.rows(hidden, up, order, by_row, None, True, capability),
            "grad_gate_up": products.over_rows(hidden, x, gate_up_proj, order, gather_b=True),
            "grad_down": products.over_rows(x, active, down_proj, order, gather_a=True),
        }
    return launches


def configurations() -> list[Configuration]:
    """Return the kernels in bf16 at DeepSeek-V3's and Moonlight's sizes, which are arguments: each is compiled once.

    For many rows an expert, and forward for few (decoding).
    """
    found = [configuration(f"sort_{name}", launch, False, (80, 90, 100)) for name, launch in sort.examples().items()]
    total = products.sum_by_token(*(torch.empty(s, 7168, dtype=torch.bfloat16, device="meta") for s in (65536, 8192)))
    found.append(configuration("sum_bf16", total, False, (80, 90, 100)))
    for rows in (16, 64, 128):
        for capabilities in ((80,), (90, 100)):
            for name, launch in _examples(rows, capabilities[0]).items():
                kind = "tma" if capabilities[0] >= 90 else "pointers"
                found.append(configuration(f"{name}_bf16_M{rows}_{kind}", launch, True, capabilities))
    return found
