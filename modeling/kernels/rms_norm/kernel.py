"""RMSNorm in Triton: one pass over the rows forward, one backward; the weight's gradient without atomics.

A program holds whole rows in registers, so that every number is read once and written once.
"""

# T rows, D columns, P programs of the backward pass

import torch
import triton
import triton.language as tl

from ..launch import Configuration, device_of, num_multiprocessors

MAX_COLUMNS = 16384


@triton.jit
def forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    total_ptr,
    rstd_ptr,
    num_rows,
    stride_x,
    stride_residual,
    eps,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Normalise ROWS rows; the sum with the residual is rounded before it is used, as it is stored."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (column < COLUMNS)
    x = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * stride_residual + column, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + row * COLUMNS + column, x, mask=mask)
    wide = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / COLUMNS + eps)
    weight = tl.load(weight_ptr + column, mask=column < COLUMNS, other=0.0)
    normed = (wide * rstd).to(x.dtype).to(tl.float32)
    tl.store(y_ptr + row * COLUMNS + column, weight.to(tl.float32) * normed, mask=mask)
    tl.store(rstd_ptr + row, rstd, mask=row < num_rows)


@triton.jit
def backward_kernel(
    grad_ptr,
    grad_total_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    grad_x_ptr,
    partial_ptr,
    num_rows,
    stride_grad,
    stride_grad_total,
    stride_x,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
):
    """Go through every P-th group of rows, and add up this program's share of the weight's gradient."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < COLUMNS
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.zeros((1, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None].to(tl.int64)
        mask = (row < num_rows) & inside
        rstd = tl.load(rstd_ptr + row, mask=row < num_rows, other=0.0)
        normed = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0).to(tl.float32) * rstd
        grad = tl.load(grad_ptr + row * stride_grad + column, mask=mask, other=0.0).to(tl.float32)
        if NEEDS_WEIGHT:
            share += tl.sum(grad * normed, axis=0, keep_dims=True)
        grad *= weight
        along = tl.sum(grad * normed, axis=1, keep_dims=True) / COLUMNS
        grad = (grad - normed * along) * rstd
        if HAS_TOTAL:
            grad += tl.load(grad_total_ptr + row * stride_grad_total + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + row * COLUMNS + column, grad, mask=mask)
    if NEEDS_WEIGHT:
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * COLUMNS + column, share, mask=inside)


def takes(x: torch.Tensor) -> bool:
    """Return whether the kernels take this dtype and number of columns."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and 0 < x.shape[-1] <= MAX_COLUMNS


def _tiling(columns: int, backward: bool) -> dict[str, int]:
    block = triton.next_power_of_2(columns)
    # 16 bytes a load and thread at least; backward holds the weight, its gradient, x and grad at once.
    rows = max(1, min(8, 2048 // block))
    numbers = block * rows
    return {"BLOCK": block, "ROWS": rows, "num_warps": max(1, min(16, numbers // (256 if backward else 1024)))}


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """Return `x` as (T, D) whose rows are dense; a copy only where strides leave no other way."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return output (..., D), 1/rms of each row (..., 1) in fp32, and `x + residual`, empty without a residual."""
    columns = x.shape[-1]
    rows = _as_rows(x)
    others = rows if residual is None else _as_rows(residual)
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    total = torch.empty(x.shape if residual is not None else (0,), dtype=x.dtype, device=x.device)
    rstd = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    tiling = _tiling(columns, backward=False)
    with device_of(x):
        forward_kernel[(triton.cdiv(rows.shape[0], tiling["ROWS"]),)](
            rows,
            others,
            weight.contiguous(),
            y,
            total,
            rstd,
            rows.shape[0],
            rows.stride(0),
            others.stride(0),
            eps,
            COLUMNS=columns,
            HAS_RESIDUAL=residual is not None,
            **tiling,
        )
    return y, rstd, total


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    needs_weight: bool,
    grad_total: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients to `x` (plus `grad_total`, what arrives at the sum itself) and, if needed, to `weight`."""
    columns = x.shape[-1]
    rows, grads = _as_rows(x), _as_rows(grad)
    others = grads if grad_total is None else _as_rows(grad_total)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tiling = _tiling(columns, backward=True)
    programs = min(triton.cdiv(rows.shape[0], tiling["ROWS"]), num_multiprocessors(x))
    partial = torch.empty((programs if needs_weight else 0, columns), dtype=torch.float32, device=x.device)
    with device_of(x):
        backward_kernel[(programs,)](
            grads,
            others,
            rows,
            weight.contiguous(),
            rstd,
            grad_x,
            partial,
            rows.shape[0],
            grads.stride(0),
            others.stride(0),
            rows.stride(0),
            COLUMNS=columns,
            HAS_TOTAL=grad_total is not None,
            NEEDS_WEIGHT=needs_weight,
            **tiling,
        )
    return grad_x, partial.sum(0).to(weight.dtype) if needs_weight else None


def configurations() -> list[Configuration]:
    """Return the kernels at the widths of DeepSeek-V3 (hidden, query latent, KV latent) and Moonlight, bf16."""
    found = []
    for columns in (7168, 1536, 512, 2048):
        numbers = {"num_rows": "i32", "stride_x": "i32"}
        constants = {"COLUMNS": columns}
        tiling = _tiling(columns, backward=False)
        warps = tiling.pop("num_warps")
        pointers = dict.fromkeys(["x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "total_ptr"], "*bf16")
        found.append(
            Configuration(
                f"forward_bf16_D{columns}",
                forward_kernel,
                {**pointers, "rstd_ptr": "*fp32", **numbers, "stride_residual": "i32", "eps": "fp32"},
                {**constants, **tiling, "HAS_RESIDUAL": True},
                num_warps=warps,
                aligned=("stride_x", "stride_residual"),
            )
        )
        tiling = _tiling(columns, backward=True)
        warps = tiling.pop("num_warps")
        pointers = dict.fromkeys(["grad_ptr", "grad_total_ptr", "x_ptr", "weight_ptr", "grad_x_ptr"], "*bf16")
        strides = dict.fromkeys(["stride_grad", "stride_grad_total"], "i32")
        found.append(
            Configuration(
                f"backward_bf16_D{columns}",
                backward_kernel,
                {**pointers, "rstd_ptr": "*fp32", "partial_ptr": "*fp32", **numbers, **strides},
                {**constants, **tiling, "HAS_TOTAL": True, "NEEDS_WEIGHT": True},
                num_warps=warps,
                aligned=("stride_x", "stride_grad", "stride_grad_total"),
            )
        )
    return found
