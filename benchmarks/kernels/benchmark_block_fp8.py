"""Block-fp8 there and back: hidden states a token and 128 columns at a time, the dense layers' weight by blocks."""

import torch

from benchmarks.kernels.case import MODELS, PUBLISHED, Case, Runs, Target
from seeklet.modeling.kernels.block_fp8 import op, reference

BYTES = (
    "T tokens, D columns, R rows, bf16: activations 3TD + 4TD/128, weight there and back 3RD + 4RD/128² each "
    "(2 bytes a number, 1 a code, 4 a scale)"
)
FLOPS = "none of matrix products"
TARGET = Target("of the copy", 0.8)


def _as_bytes(quantized: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    # Which can be compared, as float8 cannot.
    return quantized[0].view(torch.uint8), quantized[1]


def cases() -> list[Case]:
    """Return activations, and a weight there and back, of each model."""
    found = []
    for name, model in MODELS.items():
        shapes = (model.tokens, model.hidden), (model.dense, model.hidden)

        def activations(device: torch.device, shape: tuple[int, int] = shapes[0]) -> Runs:
            x = torch.randn(shape, dtype=torch.bfloat16, device=device)
            return {
                "ours": lambda: _as_bytes(op.quantize_activations(x)),
                "eager": lambda: _as_bytes(reference.quantize_activations(x)),
            }

        def there(device: torch.device, shape: tuple[int, int] = shapes[1]) -> Runs:
            weight = torch.randn(shape, dtype=torch.bfloat16, device=device)
            return {
                "ours": lambda: _as_bytes(op.quantize(weight)),
                "eager": lambda: _as_bytes(reference.quantize(weight)),
            }

        def back(device: torch.device, shape: tuple[int, int] = shapes[1]) -> Runs:
            codes, scale = op.quantize(torch.randn(shape, dtype=torch.bfloat16, device=device))
            return {
                "ours": lambda: op.dequantize(codes, scale),
                "eager": lambda: reference.dequantize(codes, scale),
            }

        tokens, weight = (rows * columns for rows, columns in shapes)
        rows, columns = reference.scale_shape(*shapes[1])
        target = TARGET if name in PUBLISHED else None
        found += [
            Case(f"quantize activations, {name}", 3 * tokens + 4 * model.tokens * columns, 0, activations, target),
            Case(f"quantize weight, {name}", 3 * weight + 4 * rows * columns, 0, there, target),
            Case(f"dequantize weight, {name}", 3 * weight + 4 * rows * columns, 0, back, target),
        ]
    return found
