"""Routed SwiGLU experts whose frozen weights stay block-fp8, each dequantised when tokens reach it.

Two forward ways, as of a linear layer: weights dequantised to the dtype of the input, the same values as a dequantised
model's; and inputs of both projections rounded to fp8 too, a scale for every 128 columns of a row (DeepSeek-V3 report,
section 3.3). The gradient passes by the rounding. Kept for backward: the gate_up output and the indices, not the input.
"""

# T tokens, K experts a token, S = T*K rows sorted by expert, E experts, H hidden, I expert width
# P matrices stacked by rows, M and N blocks of 128 rows and columns

import torch

from ..block_fp8.reference import ROW_BLOCK, dequantize, dequantize_stacked, quantize_activations
from ..grouped_experts.reference import activation, backward_loop, forward_loop, hit_experts, sort_rows, sum_by_token


class Dequantized:
    """A stack of weights that reads as (E, out, in) in `dtype`, an expert's dequantised as it is asked for."""

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype):
        self.codes, self.scale, self.dtype = codes, scale, dtype
        self.shape = codes.shape

    def __getitem__(self, expert: int) -> torch.Tensor:
        """Return the weight (out, in) of an expert."""
        return dequantize_stacked(self.codes[expert], self.scale[expert], self.dtype)


def forward(x_TH, indices_TK, weights_TK, gate_up_codes, gate_up_scale, down_codes, down_scale, save: bool):
    """Return (output (T, H), gate_up (S, 2I) or empty, rows (S,), counts (E,)).

    Codes are (E, 2I, H) and (E, H, I), scales fp32 (E, 2, M, N), those of gate and of up, and (E, M, N). `gate_up` is
    empty unless `save`.
    """
    gate_up, down = (
        Dequantized(*pair, x_TH.dtype) for pair in ((gate_up_codes, gate_up_scale), (down_codes, down_scale))
    )
    return forward_loop(x_TH, indices_TK, weights_TK, gate_up, down, save)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (rows, columns) in fp32 or wider as its codes and scales stand for it."""
    return dequantize(*quantize_activations(x), torch.promote_types(x.dtype, torch.float32), block=ROW_BLOCK)


def forward_quantized(x_TH, indices_TK, weights_TK, gate_up_codes, gate_up_scale, down_codes, down_scale, save: bool):
    """Return what `forward` does with the tokens, and the weighted activations, rounded to fp8.

    Products are those of the dequantised numbers in fp32 or wider, rounded once.
    """
    top_k, dtype = indices_TK.shape[1], x_TH.dtype
    wide = torch.promote_types(dtype, torch.float32)
    up, down = (Dequantized(*pair, wide) for pair in ((gate_up_codes, gate_up_scale), (down_codes, down_scale)))
    rows, counts = sort_rows(indices_TK, up.shape[0])
    x, weights = rounded(x_TH)[rows // top_k], weights_TK.flatten()[rows][:, None]
    gate_up, by_row = x.new_empty(x.shape[0], up.shape[1], dtype=dtype), torch.empty_like(x, dtype=dtype)
    for expert, part in hit_experts(counts):
        gate_up[part] = x[part] @ up[expert].t()
        by_row[part] = rounded(activation(gate_up[part])[2].mul_(weights[part])) @ down[expert].t()
    return sum_by_token(by_row, rows, top_k), gate_up if save else gate_up.new_empty(0, up.shape[1]), rows, counts


def backward(grad_TH, weights_TK, gate_up_codes, gate_up_scale, down_codes, down_scale, gate_up, rows, counts):
    """Return the gradients of x (T, H) and weights (T, K), given that of the output."""
    up, down = (
        Dequantized(*pair, grad_TH.dtype) for pair in ((gate_up_codes, gate_up_scale), (down_codes, down_scale))
    )
    return backward_loop(grad_TH, None, weights_TK, up, down, gate_up, rows, counts, False)[:2]
