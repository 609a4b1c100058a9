"""The routed experts with frozen block-fp8 weights in Triton: sorted, gathered and summed up as `grouped_experts` are.

Codes become numbers on their way into the products of `grouped_experts`, forward and backward; or, where inputs are
rounded to fp8 too, meet those in the tensor cores as they are (programs.py).
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width

import torch
import triton

from ..block_fp8.op import quantize_activations
from ..grouped_experts import products
from ..grouped_experts.kernel import DTYPES, backward_of, example_order, forward_of, order_again, sort_by_expert
from ..grouped_experts.launching import Launch, configuration, run
from ..grouped_experts.matrices import Matrices, descriptor, fits_tma, weight_arguments
from ..grouped_experts.products import Sorted
from ..grouped_experts.tiling import Tiling
from ..launch import Configuration, device_of
from . import programs

FP8 = torch.float8_e4m3fn


def takes(x: torch.Tensor, gate_up_codes: torch.Tensor, down_codes: torch.Tensor) -> bool:
    """Return whether the kernels take these: the dtypes, and no size of zero but that of tokens."""
    return x.dtype in DTYPES and gate_up_codes.dtype == down_codes.dtype == FP8 and down_codes.numel() > 0


def forward(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,), as the reference does."""
    order, counts = sort_by_expert(indices, gate_up_codes.shape[0], x.dtype)
    matrices = Matrices(gate_up_codes, gate_up_scale), Matrices(down_codes, down_scale)
    output, hidden = forward_of(x, weights, order, *matrices, (None, None), save)
    return output, hidden, order.rows, counts


def backward(
    grad: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    gate_up: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x (T, H) and weights (T, K), as the reference does."""
    order = order_again(rows, counts, weights.shape[1], grad.dtype)
    matrices = Matrices(gate_up_codes, gate_up_scale), Matrices(down_codes, down_scale)
    return backward_of(grad, weights, order, *matrices, gate_up, (None, None), False)[:2]


def _most_rows(capability: int) -> int:
    # With more there are not enough registers for gate, up and a product yet to be scaled, or for decoding it.
    return 64 if capability >= 90 else 32


def _tiling(rows: int, columns: int) -> Tiling:
    """Return the tiling of products in fp8, 128 columns of codes at a time."""
    return Tiling(rows, columns, 128, 4 if rows == 16 else 8, 3)


def _sides(source: torch.Tensor, capability: int) -> torch.Tensor:
    # Programs for chips that have no float8 read bytes.
    return source if capability >= 90 else source.view(torch.uint8)


def _gate_up(
    x: tuple[torch.Tensor, torch.Tensor],
    matrices: Matrices,
    weights: torch.Tensor,
    order: Sorted,
    hidden: torch.Tensor,
    active: tuple[torch.Tensor, torch.Tensor],
    capability: int,
) -> Launch:
    """Return the launch that fills `active`, codes (S, I) and scales (N, S), and `hidden` (S, 2I) if it has rows."""
    codes, (x_codes, x_scale) = matrices.weight, x
    width, chosen = codes.shape[1] // 2, _tiling(order.tiles.block_rows, 128)
    arguments = {
        "x_ptr": _sides(x_codes, capability),
        "x_scale_ptr": x_scale,
        "weights_ptr": weights,
        "hidden_ptr": hidden,
        "active_ptr": active[0].view(torch.uint8),
        "active_scale_ptr": active[1],
        "num_rows": order.rows.numel(),
        "num_in": codes.shape[2],
        "width": width,
        "stride_x": x_codes.stride(0),
        "stride_x_scale": x_scale.stride(1),
        "TOP_K": order.top_k,
        "EVEN": products.even((codes.shape[2], 128), (width, chosen.block_n)),
        "NATIVE": capability >= 90,
        "SAVE": hidden.numel() > 0,
        **weight_arguments(matrices, chosen, False, capability),
    }
    return products.launch_over(programs.gate_up_kernel, width, chosen, order, arguments)


def _rows(
    source: tuple[torch.Tensor, torch.Tensor], matrices: Matrices, order: Sorted, out: torch.Tensor, capability: int
) -> Launch:
    """Return the launch that writes `source`, codes (S, in) and scales (N, S), times W to `out` by `token * K + k`."""
    _, num_out, num_in = matrices.weight.shape
    chosen = _tiling(order.tiles.block_rows, 128 if capability >= 90 else 64)
    codes = _sides(source[0], capability)
    tma = fits_tma(codes, capability)
    arguments = {
        "source": descriptor(codes, chosen.block_m, chosen.block_k) if tma else codes,
        "source_scale_ptr": source[1],
        "out_ptr": out,
        "num_rows": order.rows.numel(),
        "num_out": num_out,
        "num_in": num_in,
        "stride_source": codes.stride(0),
        "EVEN": products.even((num_in, 128), (num_out, chosen.block_n)),
        "SOURCE_TMA": tma,
        "NATIVE": capability >= 90,
        **weight_arguments(matrices, chosen, False, capability),
    }
    return products.launch_over(programs.rows_kernel, num_out, chosen, order, arguments)


def forward_quantized(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `forward` does with tokens and activations rounded to fp8, as the reference does."""
    order, counts = sort_by_expert(indices, gate_up_codes.shape[0], x.dtype, _most_rows(products.chip(x)))
    gate_up, down = Matrices(gate_up_codes, gate_up_scale), Matrices(down_codes, down_scale)
    num_rows, width, capability = indices.numel(), down_codes.shape[2], products.chip(x)
    hidden, by_row = x.new_empty(num_rows if save else 0, 2 * width), x.new_empty(num_rows, x.shape[1])
    scale = torch.empty(triton.cdiv(width, 128), num_rows, dtype=torch.float32, device=x.device)
    active = torch.empty(num_rows, width, dtype=FP8, device=x.device), scale
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    quantized = quantize_activations(x)
    with device_of(x):
        run(_gate_up(quantized, gate_up, weights.contiguous(), order, hidden, active, capability))
        run(_rows(active, down, order, by_row, capability))
        run(products.sum_by_token(by_row, output))
    return output, hidden, order.rows, counts


def _examples(rows: int, capability: int) -> dict[str, Launch]:
    """Return the launches at DeepSeek-V3's sizes, without memory; Moonlight's are other numbers to the same kernels."""

    def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def scales(*shape: int) -> torch.Tensor:
        return numbers(*shape, dtype=torch.float32)

    order, coded_order, save = example_order(rows), example_order(min(rows, _most_rows(capability))), rows == 128
    up = Matrices(numbers(256, 4096, 7168, dtype=FP8), scales(256, 2, 16, 56))
    down = Matrices(numbers(256, 7168, 2048, dtype=FP8), scales(256, 56, 16))
    x, hidden, active, by_row = numbers(8192, 7168), numbers(65536, 4096), numbers(65536, 2048), numbers(65536, 7168)
    weights, kept = numbers(8192, 8, dtype=torch.float32), hidden if save else hidden[:0]
    coded = (x.to(FP8), scales(56, 8192).t()), (active.to(FP8), scales(16, 65536))
    launches = {
        "gate_up": products.gate_up(x, up, weights, order, hidden, active, None, save, capability),
        "down": products.rows(active, down, order, by_row, None, False, capability),
        "gate_up_quantized": _gate_up(coded[0], up, weights, coded_order, kept, coded[1], capability),
        "down_quantized": _rows(coded[1], down, coded_order, by_row, capability),
    }
    if save:
        last = order, hidden, scales(65536, 16), None, None, capability
        launches |= {
            "activation": products.activation(x, down, weights, hidden, *last),
            "grad_x": products.rows(hidden, up, order, by_row, None, True, capability),
        }
    return launches


def configurations() -> list[Configuration]:
    """Return the kernels at DeepSeek-V3's and Moonlight's sizes: for many rows an expert, and forward for few."""
    found = []
    for rows in (16, 128):
        for capabilities in ((80,), (90, 100)):
            for name, launch in _examples(rows, capabilities[0]).items():
                kind = "native" if capabilities[0] >= 90 else "shifts"
                found.append(configuration(f"{name}_M{rows}_{kind}", launch, True, capabilities))
    return found
