"""The routed experts with frozen fp8 weights, beside those with bf16 weights, and dequantised expert by expert."""

import torch

from benchmarks.kernels.benchmark_grouped_experts import EXPERTS, choices, sizes
from benchmarks.kernels.case import MODELS, Case, Runs
from seeklet.modeling.kernels.block_fp8.op import quantize
from seeklet.modeling.kernels.block_fp8.reference import dequantize_stacked
from seeklet.modeling.kernels.grouped_experts.op import grouped_experts
from seeklet.modeling.kernels.grouped_fp8 import op, reference

BYTES = (
    "T tokens, K experts a token, S = TK, H hidden, I expert width, E experts, tokens in bf16: 2·2TH (input, output), "
    "3EIH (1 byte a code) and 4·3EIH/128² (scales); backward the same, with gradients for tokens, and 2·2SI (gate, up)"
)
FLOPS = "6SIH, also backward, as the weights get no gradient; with both operands in fp8 counted half"
# Experts that differ: quantising all of DeepSeek-V3's takes longer than the measurement.
STACK = 32


def _stored(experts: int, rows: int, columns: int, parts: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return codes (E, P R, C) and scales of small random weights, the same few experts again and again."""
    drawn = [
        [quantize(torch.randn(rows, columns, device=device).div_(8 * columns**0.5)) for _ in range(parts)]
        for _ in range(min(experts, STACK))
    ]
    codes = torch.stack([torch.cat([part[0] for part in each]) for each in drawn])
    scale = torch.stack([torch.stack([part[1] for part in each]) for each in drawn])
    again = -(-experts // len(drawn))
    stacks = codes.repeat(again, 1, 1)[:experts], scale.repeat(again, 1, 1, 1)[:experts]
    return stacks if parts > 1 else (stacks[0], stacks[1][:, 0])


def cases() -> list[Case]:
    """Return forward both ways and backward of each model."""
    found = []
    for name, model in MODELS.items():

        def runs(device: torch.device, way: str, name: str = name) -> Runs:
            model, (experts, top_k) = MODELS[name], EXPERTS[name]
            stored = (
                *_stored(experts, model.expert, model.hidden, 2, device),
                *_stored(experts, model.hidden, model.expert, 1, device),
            )
            gate_up, down = (
                torch.stack([dequantize_stacked(c, s, torch.bfloat16) for c, s in zip(*pair, strict=True)])
                for pair in (stored[:2], stored[2:])
            )
            x = torch.randn(model.tokens, model.hidden, dtype=torch.bfloat16, device=device).requires_grad_()
            weights = torch.rand(model.tokens, top_k, device=device)
            inputs = x, choices(model.tokens, experts, top_k, device), weights
            if way != "backward":
                ours = op.grouped_fp8 if way == "forward" else op.grouped_fp8_quantized
                calls = {
                    "ours": lambda: ours(*inputs, *stored),
                    "bf16 weights": lambda: grouped_experts(*inputs, gate_up, down),
                    "dequantised one by one": lambda: reference.forward(*inputs, *stored, save=False)[0],
                }
                return {label: torch.no_grad()(call) for label, call in calls.items()}
            outputs = {
                "ours": op.grouped_fp8(*inputs, *stored),
                "bf16 weights": grouped_experts(*inputs, gate_up, down),
            }
            grad = torch.randn_like(x)
            return {
                label: lambda output=output: torch.autograd.grad(output, x, grad, retain_graph=True)[0]
                for label, output in outputs.items()
            }

        (tokens, hidden), (products, weights, _) = sizes(name, model)
        stored = weights // 2 + 2 * weights // 128**2
        for way in ("forward", "forward in fp8", "backward"):
            num_bytes = 2 * tokens + stored + (hidden if way == "backward" else 0)
            flops = products // (2 if way == "forward in fp8" else 1)
            found.append(Case(f"{way}, {name}", num_bytes, flops, lambda device, way=way, runs=runs: runs(device, way)))
    return found
