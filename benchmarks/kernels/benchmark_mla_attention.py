"""MLA attention in training, causal, beside PyTorch's on query and key in one piece, and the best library installed."""

import torch
from torch.nn import functional as F

from benchmarks.kernels.case import MODELS, Case, forward_and_backward
from seeklet.modeling.kernels.mla_attention.library import attend
from seeklet.modeling.kernels.mla_attention.op import mla_attention
from seeklet.modeling.kernels.mla_attention.parts import joined

BYTES = (
    "S tokens, H heads, D = N + R key and V value columns, bf16: forward 2S(H(D + N + V) + R + HV) + 4SH (queries, "
    "keys, values, output; log-sum-exp), backward that and 2S(H(D + N + 2V) + R) of gradients"
)
FLOPS = "causal, half of the square: forward HS²(D + V), backward HS²(3D + 2V)"


def cases() -> list[Case]:
    """Return forward and backward of each model; values are as wide as the keys' part without rope."""
    found = []
    for name, model in MODELS.items():
        tokens, heads, nope, rope = model.tokens, model.heads, model.nope, model.rope
        scaling = (nope + rope) ** -0.5

        def draw(device: torch.device, tokens=tokens, heads=heads, nope=nope, rope=rope) -> list[torch.Tensor]:
            widths = (nope, rope, nope, nope)
            a, b, c, d = (
                torch.randn(1, tokens, heads, width, dtype=torch.bfloat16, device=device).transpose(1, 2)
                for width in widths
            )
            return [a, b, c, torch.randn(1, tokens, rope, dtype=torch.bfloat16, device=device), d]

        def ours(*parts: torch.Tensor, scaling: float = scaling) -> torch.Tensor:
            q_nope, q_rope, k_nope, k_rope, value = parts
            return mla_attention(q_nope, q_rope, k_nope, k_rope, value, None, scaling)

        def best(*parts: torch.Tensor, scaling: float = scaling) -> torch.Tensor:
            q_nope, q_rope, k_nope, k_rope, value = parts
            return attend(q_nope, q_rope, k_nope, k_rope, value, None, scaling)

        def sdpa(*parts: torch.Tensor, scaling: float = scaling) -> torch.Tensor:
            query, key = joined(*parts[:4])
            return F.scaled_dot_product_attention(query, key, parts[4], is_causal=True, scale=scaling)

        read = 2 * tokens * (heads * (nope + rope + 3 * nope) + rope) + 4 * tokens * heads
        num_bytes = (read, read + 2 * tokens * (heads * (nope + rope + 3 * nope) + rope))
        square = heads * tokens**2
        num_flops = (square * (2 * nope + rope), square * (3 * (nope + rope) + 2 * nope))
        functions = {"ours": ours, "sdpa": sdpa, "best library": best}
        found += forward_and_backward(name, num_bytes, num_flops, draw, functions)
    return found
