"""SwiGLU in Triton: one pass forward, one backward, in fp32, rounded once; inputs may be halves of one tensor."""

# T rows, I columns

import torch
import triton
import triton.language as tl

from ..launch import Configuration, device_of

# 16 bytes of bf16 a thread.
BLOCK = 1024


@triton.jit
def forward_kernel(gate_ptr, up_ptr, out_ptr, columns, blocks_per_row, stride_gate, stride_up, BLOCK: tl.constexpr):
    """Write a block of one row."""
    row = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    column = (tl.program_id(0) % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * columns + column, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    columns,
    blocks_per_row,
    stride_grad,
    stride_gate,
    stride_up,
    BLOCK: tl.constexpr,
):
    """Write a block of one row of both gradients."""
    row = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    column = (tl.program_id(0) % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    grad = tl.load(grad_ptr + row * stride_grad + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(grad_gate_ptr + row * columns + column, grad * up * sigmoid * (1 + gate * (1 - sigmoid)), mask=mask)
    tl.store(grad_up_ptr + row * columns + column, grad * gate * sigmoid, mask=mask)


def takes(gate: torch.Tensor) -> bool:
    """Return whether the kernels take this dtype."""
    return gate.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _as_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors as (T, I) with dense rows, and as one row where all are contiguous."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(1, -1) for tensor in tensors]
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    return [each if each.stride(-1) == 1 or each.shape[-1] == 1 else each.contiguous() for each in rows]


def _grid(rows: torch.Tensor) -> tuple[int, int]:
    blocks = triton.cdiv(rows.shape[1], BLOCK)
    return blocks, blocks * rows.shape[0]


def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` (..., I), contiguous."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gates, ups = _as_rows(gate, up)
    blocks, programs = _grid(gates)
    with device_of(gate):
        forward_kernel[(programs,)](
            gates, ups, out, gates.shape[1], blocks, gates.stride(0), ups.stride(0), BLOCK=BLOCK
        )
    return out


def backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients to gate and up, contiguous, given `grad`; all (..., I)."""
    grad_gate, grad_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    grads, gates, ups = _as_rows(grad, gate, up)
    blocks, programs = _grid(gates)
    strides = (grads.stride(0), gates.stride(0), ups.stride(0))
    with device_of(gate):
        backward_kernel[(programs,)](
            grads, gates, ups, grad_gate, grad_up, gates.shape[1], blocks, *strides, BLOCK=BLOCK
        )
    return grad_gate, grad_up


def configurations() -> list[Configuration]:
    """Return both kernels in bf16; the shape makes no difference."""
    numbers = dict.fromkeys(["columns", "blocks_per_row", "stride_gate", "stride_up"], "i32")
    pointers = dict.fromkeys(["gate_ptr", "up_ptr", "out_ptr"], "*bf16")
    aligned = ("columns", "stride_gate", "stride_up")
    gradients = dict.fromkeys(["grad_ptr", "gate_ptr", "up_ptr", "grad_gate_ptr", "grad_up_ptr"], "*bf16")
    constants = {"BLOCK": BLOCK}
    return [
        Configuration("forward_bf16", forward_kernel, {**pointers, **numbers}, constants, aligned=aligned),
        Configuration(
            "backward_bf16",
            backward_kernel,
            {**gradients, **numbers, "stride_grad": "i32"},
            constants,
            aligned=(*aligned, "stride_grad"),
        ),
    ]
