"""Rope in Triton: queries and keys are rotated in one launch, and joined with their other part where that is asked for.

A program takes one position and a few heads: it copies the part that is not rotated (N columns, or none), rotates the
other (R columns) and writes both side by side. The shared key is read once a position and written to all heads;
backward, its gradient is summed over them in a fixed order.
"""

# B batch, S positions, H heads of queries or of keys, N columns as they are, R columns to rotate

import torch
import triton
import triton.language as tl

from ..launch import Configuration, device_of

# Heads a program: 16 rows of 64 columns are 16 bytes of bf16 a thread.
HEADS = 16


@triton.jit
def _rotated(first, second, cos, sin):
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _copy(source_ptr, target_ptr, source_row, target_row, mask, N: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    inside = mask & (column < N)
    tl.store(target_ptr + target_row + column, tl.load(source_ptr + source_row + column, mask=inside), mask=inside)


@triton.jit
def _load_pairs(ptr, row, mask, R: tl.constexpr, ROWS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return the first and the second of each pair, (ROWS, R // 2) in fp32; zero where masked."""
    if INTERLEAVED:
        pairs = tl.load(ptr + row + tl.arange(0, R)[None, :], mask=mask, other=0.0)
        return tl.split(tl.reshape(pairs.to(tl.float32), (ROWS, R // 2, 2)))
    else:
        half = tl.arange(0, R // 2)[None, :]
        first = tl.load(ptr + row + half, mask=mask, other=0.0).to(tl.float32)
        return first, tl.load(ptr + row + R // 2 + half, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_pairs(ptr, row, first, second, mask, R: tl.constexpr, ROWS: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        tl.store(ptr + row + tl.arange(0, R)[None, :], tl.reshape(tl.join(first, second), (ROWS, R)), mask=mask)
    else:
        half = tl.arange(0, R // 2)[None, :]
        tl.store(ptr + row + half, first, mask=mask)
        tl.store(ptr + row + R // 2 + half, second, mask=mask)


@triton.jit
def forward_kernel(
    q_ptr, k_nope_ptr, k_rope_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    positions, q_heads, k_heads, q_blocks,
    q_b, q_h, q_s, nope_b, nope_h, nope_s, rope_b, rope_s, cos_b, cos_s,
    N: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write HEADS heads of the queries or, past the `q_blocks` blocks of those, of the keys, both (B, S, H, N + R)."""
    token = tl.program_id(0)
    b, s = (token // positions).to(tl.int64), (token % positions).to(tl.int64)
    token = token.to(tl.int64)
    half = tl.arange(0, R // 2)[None, :]
    cos = tl.load(cos_ptr + b * cos_b + s * cos_s + half).to(tl.float32)
    sin = tl.load(sin_ptr + b * cos_b + s * cos_s + half).to(tl.float32)
    block = tl.program_id(1)
    if block < q_blocks:
        head = (block * HEADS + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = head < q_heads
        source, target = b * q_b + s * q_s + head * q_h, (token * q_heads + head) * (N + R)
        if N > 0:
            _copy(q_ptr, q_out_ptr, source, target, mask, N, BLOCK)
        first, second = _load_pairs(q_ptr, source + N, mask, R, HEADS, INTERLEAVED)
        first, second = _rotated(first, second, cos, sin)
        _store_pairs(q_out_ptr, target + N, first, second, mask, R, HEADS, False)
    else:
        head = ((block - q_blocks) * HEADS + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = head < k_heads
        target = (token * k_heads + head) * (N + R)
        if N > 0:
            _copy(k_nope_ptr, k_out_ptr, b * nope_b + s * nope_s + head * nope_h, target, mask, N, BLOCK)
        # One key for all heads.
        source = b * rope_b + s * rope_s + head * 0
        first, second = _load_pairs(k_rope_ptr, source, mask, R, HEADS, INTERLEAVED)
        first, second = _rotated(first, second, cos, sin)
        _store_pairs(k_out_ptr, target + N, first, second, mask, R, HEADS, False)


@triton.jit
def backward_kernel(
    q_grad_ptr, k_grad_ptr, cos_ptr, sin_ptr, q_out_ptr, k_nope_ptr, k_rope_ptr,
    positions, q_heads, k_heads, q_blocks,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_b, cos_s,
    N: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Turn gradients back: of queries (B, S, H, N + R), of the keys' N columns (B, S, H, N), of the rest (B, S, R).

    The last block of a position goes through all heads of the keys and adds up what arrives at the shared one.
    """
    token = tl.program_id(0)
    b, s = (token // positions).to(tl.int64), (token % positions).to(tl.int64)
    token = token.to(tl.int64)
    half = tl.arange(0, R // 2)[None, :]
    cos = tl.load(cos_ptr + b * cos_b + s * cos_s + half).to(tl.float32)
    sin = tl.load(sin_ptr + b * cos_b + s * cos_s + half).to(tl.float32)
    block = tl.program_id(1)
    if block < q_blocks:
        head = (block * HEADS + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = head < q_heads
        source, target = b * q_b + s * q_s + head * q_h, (token * q_heads + head) * (N + R)
        if N > 0:
            _copy(q_grad_ptr, q_out_ptr, source, target, mask, N, BLOCK)
        first, second = _load_pairs(q_grad_ptr, source + N, mask, R, HEADS, False)
        first, second = _rotated(first, second, cos, -sin)
        _store_pairs(q_out_ptr, target + N, first, second, mask, R, HEADS, INTERLEAVED)
    else:
        total_first, total_second = tl.zeros((1, R // 2), tl.float32), tl.zeros((1, R // 2), tl.float32)
        for start in range(0, k_heads, HEADS):
            head = (start + tl.arange(0, HEADS)).to(tl.int64)[:, None]
            mask = head < k_heads
            source = b * k_b + s * k_s + head * k_h
            if N > 0:
                _copy(k_grad_ptr, k_nope_ptr, source, (token * k_heads + head) * N, mask, N, BLOCK)
            first, second = _load_pairs(k_grad_ptr, source + N, mask, R, HEADS, False)
            total_first += tl.sum(first, axis=0, keep_dims=True)
            total_second += tl.sum(second, axis=0, keep_dims=True)
        total_first, total_second = _rotated(total_first, total_second, cos, -sin)
        _store_pairs(k_rope_ptr, token * R, total_first, total_second, tl.full((1, 1), 1, tl.int1), R, 1, INTERLEAVED)


def takes(x: torch.Tensor, rotated: int) -> bool:
    """Return whether the kernels take this dtype and number of columns to rotate."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and triton.next_power_of_2(rotated) == rotated > 1


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """Return the strides of all dimensions but the last; 0 where there is one entry for all."""
    return tuple(0 if size == 1 else stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True))


def _constants(nope: int, rotated: int, interleaved: bool) -> dict[str, int | bool]:
    block = triton.next_power_of_2(nope) if nope else 1
    return {"N": nope, "BLOCK": block, "R": rotated, "HEADS": HEADS, "INTERLEAVED": interleaved}


def forward(
    q: torch.Tensor,
    k_nope: torch.Tensor | None,
    k_rope: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys (B, H, S, N + R), their last R columns rotated; in memory (B, S, H, N + R).

    `q` (B, H, S, N + R), `k_nope` (B, H, S, N), `k_rope` (B, 1, S, R), tables (B or 1, S, R). Without `k_nope`, N is 0
    and the key stays the one of all heads: (B, 1, S, R).
    """
    batch, heads, positions, columns = q.shape
    rotated = k_rope.shape[-1]
    k_heads = 1 if k_nope is None else heads
    q, k_rope, cos, sin = _dense(q), _dense(k_rope), _dense(cos), _dense(sin)
    cos, sin = cos.contiguous(), sin.contiguous()
    nope = q if k_nope is None else _dense(k_nope)
    q_out, k_out = (
        torch.empty((batch, positions, number, columns), dtype=q.dtype, device=q.device) for number in (heads, k_heads)
    )
    rope_b, _, rope_s = _strides(k_rope)
    q_blocks, k_blocks = triton.cdiv(heads, HEADS), triton.cdiv(k_heads, HEADS)
    with device_of(q):
        forward_kernel[(batch * positions, q_blocks + k_blocks)](
            q, nope, k_rope, cos, sin, q_out, k_out,
            positions, heads, k_heads, q_blocks,
            *_strides(q), *_strides(nope), rope_b, rope_s, *_strides(cos),
            **_constants(columns - rotated, rotated, interleaved),
        )  # fmt: skip
    return q_out.transpose(1, 2), k_out.transpose(1, 2)


def backward(
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to `q`, `k_nope` (without columns where there is none) and `k_rope`, shaped as those."""
    batch, heads, positions, columns = grad_q.shape
    k_heads, rotated = grad_k.shape[1], cos.shape[-1]
    nope = columns - rotated
    grad_q, grad_k, cos, sin = _dense(grad_q), _dense(grad_k), cos.contiguous(), sin.contiguous()
    shapes = (batch, positions, heads, columns), (batch, positions, k_heads, nope), (batch, positions, 1, rotated)
    q_out, k_nope, k_rope = (torch.empty(shape, dtype=grad_q.dtype, device=grad_q.device) for shape in shapes)
    q_blocks = triton.cdiv(heads, HEADS)
    with device_of(grad_q):
        backward_kernel[(batch * positions, q_blocks + 1)](
            grad_q, grad_k, cos, sin, q_out, k_nope, k_rope,
            positions, heads, k_heads, q_blocks,
            *_strides(grad_q), *_strides(grad_k), *_strides(cos),
            **_constants(nope, rotated, interleaved),
        )  # fmt: skip
    return q_out.transpose(1, 2), k_nope.transpose(1, 2), k_rope.transpose(1, 2)


def configurations() -> list[Configuration]:
    """Return rotating alone and joining, at the head sizes of DeepSeek-V3 and Moonlight: 128 + 64 columns, bf16."""
    found = []
    numbers = ["positions", "q_heads", "k_heads", "q_blocks"]
    for name, nope in (("rotate", 0), ("assemble", 128)):
        for way, function, strides in (
            ("forward", forward_kernel, "q_b q_h q_s nope_b nope_h nope_s rope_b rope_s cos_b cos_s"),
            ("backward", backward_kernel, "q_b q_h q_s k_b k_h k_s cos_b cos_s"),
        ):
            pointers = [each for each in function.arg_names if each.endswith("_ptr")]
            found.append(
                Configuration(
                    f"{name}_{way}_bf16",
                    function,
                    {**dict.fromkeys(pointers, "*bf16"), **dict.fromkeys([*numbers, *strides.split()], "i32")},
                    _constants(nope, 64, interleaved=True),
                    aligned=tuple(strides.split()),
                )
            )
    return found
