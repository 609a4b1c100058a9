"""Linear layers with frozen fp8 weights, beside those with bf16 weights, and with weights dequantised for each call."""

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import MODELS, Case, Runs
from seeklet.modeling.kernels.block_fp8.op import dequantize, quantize
from seeklet.modeling.kernels.linear import op, reference

BYTES = "T tokens, C inputs, R outputs, bf16: 2TC + RC + 4RC/128² + 2TR, in either direction"
FLOPS = "2TRC; with both operands in fp8 counted half, as they take half the time"


def cases() -> list[Case]:
    """Return up projection of each model's dense layers: forward both ways, the input's gradient, one token."""
    found = []
    for name, model in MODELS.items():
        for tokens in (model.tokens, 1):

            def runs(device: torch.device, way: str, sizes: tuple[int, int, int]) -> Runs:
                tokens, inputs, outputs = sizes
                # Small, so that what the rounding to fp8 makes of it is small too.
                codes, scale = quantize(torch.randn(outputs, inputs, device=device).div_(8 * inputs**0.5).bfloat16())
                weight = dequantize(codes, scale)
                if way == "backward":
                    grad = torch.randn(tokens, outputs, dtype=torch.bfloat16, device=device)
                    return {
                        "ours": lambda: op._backward(grad, codes, scale),
                        "bf16 weight": lambda: grad @ weight,
                        "dequantised each time": lambda: reference.fp8_linear_backward(grad, codes, scale),
                    }
                x = torch.randn(tokens, inputs, dtype=torch.bfloat16, device=device)
                ours = op.fp8_linear if way == "forward" else op.fp8_linear_quantized
                return {
                    "ours": lambda: ours(x, codes, scale),
                    "bf16 weight": lambda: F.linear(x, weight),
                    "dequantised each time": lambda: reference.fp8_linear_forward(x, codes, scale),
                }

            sizes = tokens, model.hidden, model.dense
            size = model.hidden * model.dense
            num_bytes = 2 * tokens * (model.hidden + model.dense) + size + 4 * size // 128**2
            for way in ("forward", "forward in fp8", "backward") if tokens > 1 else ("forward",):
                flops = 2 * tokens * size // (2 if way == "forward in fp8" else 1)

                def on(device: torch.device, way: str = way, sizes: tuple[int, int, int] = sizes, runs=runs) -> Runs:
                    return runs(device, way, sizes)

                found.append(Case(f"{way}, {name}, {tokens} token{'s' * (tokens > 1)}", num_bytes, flops, on))
    return found
