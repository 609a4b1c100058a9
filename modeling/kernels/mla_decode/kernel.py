"""Absorbed MLA decoding in Triton: the latent cache is read by each block of heads, in splits that fill the GPU.

A program holds the queries of some heads and goes through every `splits`-th block of keys; a second kernel puts the
splits together by their log-sum-exp. Heads and query tokens are rows of one tile, as all heads share one key.
"""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import math

import torch
import triton
import triton.language as tl

from ..launch import Configuration, device_of, num_multiprocessors

MAX_LATENT, MAX_ROPE = 512, 128
# Beyond, putting the splits together takes longer than what they save.
MAX_SPLITS = 64
# Of a multiprocessor: a program takes less than half of its shared memory.
PROGRAMS_AT_ONCE = 2
NO_MASK, BOOL_MASK, ADDITIVE_MASK = (tl.constexpr(kind) for kind in range(3))
# An additive mask at or below hides its key, if another one is seen: half the lowest number of bf16 and fp32 is lower.
HIDDEN = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def bounds_kernel(
    mask_ptr,
    bounds_ptr,
    num_heads,
    num_queries,
    num_keys,
    stride_b,
    stride_h,
    stride_s,
    stride_t,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the first key that any query of a row sees, and the one behind the last."""
    b = tl.program_id(0).to(tl.int64)
    first = tl.full((BLOCK,), 2147483647, tl.int32)
    end = tl.zeros((BLOCK,), tl.int32)
    for line in range(num_heads * num_queries):
        line_ptr = mask_ptr + b * stride_b + (line // num_queries) * stride_h + (line % num_queries) * stride_s
        for start in range(0, num_keys, BLOCK):
            key = start + tl.arange(0, BLOCK)
            if MASK == BOOL_MASK:
                seen = tl.load(line_ptr + key * stride_t, mask=key < num_keys, other=0) != 0
            else:
                seen = tl.load(line_ptr + key * stride_t, mask=key < num_keys, other=float("-inf")) > HIDDEN
            first = tl.where(seen, tl.minimum(first, key), first)
            end = tl.where(seen, tl.maximum(end, key + 1), end)
    end_of_all = tl.max(end, axis=0)
    tl.store(bounds_ptr + 2 * b, tl.minimum(tl.min(first, axis=0), end_of_all))
    tl.store(bounds_ptr + 2 * b + 1, end_of_all)


@triton.jit
def split_kernel(
    q_latent_ptr,
    q_rope_ptr,
    latent_ptr,
    rope_ptr,
    mask_ptr,
    bounds_ptr,
    lengths_ptr,
    output_ptr,
    lse_ptr,
    num_rows,
    num_queries,
    num_keys,
    num_splits,
    scaling,
    q_latent_b,
    q_latent_h,
    q_latent_s,
    q_rope_b,
    q_rope_h,
    q_rope_s,
    latent_b,
    latent_t,
    rope_b,
    rope_t,
    mask_b,
    mask_h,
    mask_s,
    mask_t,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    MASK: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    """Write the output of BLOCK_ROWS rows (heads, in each the query tokens) from one split of the keys, and its lse."""
    b = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head, query = row // num_queries, row % num_queries
    column, rope_column = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    real = (row < num_rows)[:, None]
    has_latent, has_rope = (column < LATENT)[None, :], (rope_column < ROPE)[None, :]
    place = b * q_latent_b + head * q_latent_h + query * q_latent_s
    q_latent = tl.load(q_latent_ptr + place[:, None] + column[None, :], mask=real & has_latent, other=0.0)
    place = b * q_rope_b + head * q_rope_h + query * q_rope_s
    q_rope = tl.load(q_rope_ptr + place[:, None] + rope_column[None, :], mask=real & has_rope, other=0.0)

    first, end = 0, num_keys
    if LENGTHS:
        end = tl.load(lengths_ptr + b)
    elif MASK != NO_MASK:
        first, end = tl.load(bounds_ptr + 2 * b), tl.load(bounds_ptr + 2 * b + 1)
    largest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    output = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float32)
    for block in range(first // BLOCK_T + split, tl.cdiv(end, BLOCK_T), num_splits):
        key = block * BLOCK_T + tl.arange(0, BLOCK_T)
        inside = (key < end)[:, None]
        at = latent_ptr + b * latent_b + key.to(tl.int64)[:, None] * latent_t + column[None, :]
        latent = tl.load(at, mask=inside & has_latent, other=0.0)
        at = rope_ptr + b * rope_b + key.to(tl.int64)[:, None] * rope_t + rope_column[None, :]
        rope = tl.load(at, mask=inside & has_rope, other=0.0)
        scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        scores = tl.dot(q_rope, tl.trans(rope), scores, input_precision="ieee") * scaling
        seen = real & (key < end)[None, :]
        if LENGTHS:
            seen &= key[None, :] <= (end - num_queries + query)[:, None]
        if MASK != NO_MASK:
            at = mask_ptr + b * mask_b + (head * mask_h + query * mask_s)[:, None] + key[None, :] * mask_t
            if MASK == BOOL_MASK:
                seen &= tl.load(at, mask=seen, other=0) != 0
            else:
                scores += tl.load(at, mask=seen, other=0.0).to(tl.float32)
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        before = largest
        largest = tl.maximum(largest, tl.max(scores, axis=1))
        # Where nothing was seen yet, -inf - -inf is NaN.
        anchor = tl.where(largest == float("-inf"), 0.0, largest)
        p = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(before - anchor)
        total = total * shrink + tl.sum(p, axis=1)
        output = tl.dot(p.to(latent.dtype), latent, output * shrink[:, None], input_precision="ieee")
        # For the next round and for lse.
        largest = tl.where(total > 0, largest, float("-inf"))
    lse = tl.where(total > 0, largest + tl.log2(total), float("-inf"))
    output = output / tl.where(total > 0, total, 1.0)[:, None]
    place = (b * num_rows + row) * num_splits + split
    tl.store(output_ptr + place[:, None] * LATENT + column[None, :], output, mask=real & has_latent)
    tl.store(lse_ptr + place, lse, mask=row < num_rows)


@triton.jit
def combine_kernel(partial_ptr, lse_ptr, output_ptr, num_splits, LATENT: tl.constexpr, BLOCK_L: tl.constexpr):
    """Write one row: the splits' outputs, weighted by their shares of the sum of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_L)
    largest = float("-inf")
    for split in range(num_splits):
        largest = tl.maximum(largest, tl.load(lse_ptr + row * num_splits + split))
    anchor = tl.where(largest == float("-inf"), 0.0, largest)
    total = 0.0
    output = tl.zeros((BLOCK_L,), tl.float32)
    for split in range(num_splits):
        place = row * num_splits + split
        weight = tl.exp2(tl.load(lse_ptr + place) - anchor)
        total += weight
        output += weight * tl.load(partial_ptr + place * LATENT + column, mask=column < LATENT, other=0.0)
    output = output / tl.where(total > 0, total, 1.0)
    tl.store(output_ptr + row * LATENT + column, output, mask=column < LATENT)


def takes(q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor) -> bool:
    """Return whether the kernels take these dtypes and sizes; nothing is taken that is empty."""
    tensors = (q_latent, q_rope, latent, rope)
    same = q_latent.dtype in (torch.bfloat16, torch.float16, torch.float32) and {x.dtype for x in tensors} == {
        q_latent.dtype
    }
    return same and latent.shape[-1] <= MAX_LATENT and rope.shape[-1] <= MAX_ROPE and all(x.numel() for x in tensors)


def _tiling(num_rows: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_ROWS": 16, "BLOCK_T": 16, "num_warps": 8, "num_stages": 1}
    # 64 rows, as wgmma would have them, spill with 512 columns of output.
    if num_rows <= 16:
        return {"BLOCK_ROWS": 16, "BLOCK_T": 64, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_ROWS": 32, "BLOCK_T": 64, "num_warps": 8, "num_stages": 2}


def num_splits(programs: int, num_blocks: int, multiprocessors: int) -> int:
    """Return in how many parts the keys are split: as many as fill the GPU once, from shapes alone."""
    return max(1, min(PROGRAMS_AT_ONCE * multiprocessors // programs, num_blocks, MAX_SPLITS))


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _widths(latent: int, rope: int) -> dict[str, int]:
    block_l, block_r = (max(16, triton.next_power_of_2(size)) for size in (latent, rope))
    return {"LATENT": latent, "ROPE": rope, "BLOCK_L": block_l, "BLOCK_R": block_r}


def forward(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    lengths_B: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Return the attention output in latent space (B, H, S, L), zeros for a query that sees nothing."""
    B, H, S, L = q_latent_BHSL.shape
    T = latent_BTL.shape[1]
    q_latent, q_rope, latent, rope = map(_dense, (q_latent_BHSL, q_rope_BHSR, latent_BTL, rope_BTR))
    device, rows = latent.device, H * S
    tiling = _tiling(rows, latent.dtype)
    row_blocks = triton.cdiv(rows, tiling["BLOCK_ROWS"])
    splits = num_splits(B * row_blocks, triton.cdiv(T, tiling["BLOCK_T"]), num_multiprocessors(latent))
    output = torch.empty((B, H, S, L), dtype=latent.dtype, device=device)
    partial = output if splits == 1 else torch.empty((B * rows, splits, L), dtype=torch.float32, device=device)
    lse = torch.empty((B * rows, splits), dtype=torch.float32, device=device)
    kind, strides, bounds = NO_MASK.value, (0, 0, 0, 0), lse
    given = latent if mask is None else mask
    if mask is not None:
        kind = BOOL_MASK.value if mask.dtype == torch.bool else ADDITIVE_MASK.value
        given = mask.expand(B, H, S, T)
        given = given.view(torch.uint8) if mask.dtype == torch.bool else given
        strides = given.stride()
    lengths = lse if lengths_B is None else lengths_B.to(torch.int32).contiguous()
    with device_of(latent):
        if mask is not None and lengths_B is None:
            bounds = torch.empty((B, 2), dtype=torch.int32, device=device)
            lines = (H if strides[1] else 1, S if strides[2] else 1)
            bounds_kernel[(B,)](given, bounds, *lines, T, *strides, MASK=kind, BLOCK=1024)
        split_kernel[(row_blocks, splits, B)](
            q_latent,
            q_rope,
            latent,
            rope,
            given,
            bounds,
            lengths,
            partial,
            lse,
            rows,
            S,
            T,
            splits,
            scaling,
            *q_latent.stride()[:3],
            *q_rope.stride()[:3],
            *latent.stride()[:2],
            *rope.stride()[:2],
            *strides,
            MASK=kind,
            LENGTHS=lengths_B is not None,
            **_widths(L, rope.shape[-1]),
            **tiling,
        )
        if splits > 1:
            block_l = triton.next_power_of_2(L)
            combine_kernel[(B * rows,)](partial, lse, output, splits, LATENT=L, BLOCK_L=block_l, num_warps=2)
    return output


def _split_configuration(name: str, heads: int, mask: int) -> Configuration:
    signature = dict.fromkeys(["q_latent_ptr", "q_rope_ptr", "latent_ptr", "rope_ptr"], "*bf16")
    signature |= {
        "mask_ptr": "*u8" if mask == BOOL_MASK.value else "*bf16",
        "bounds_ptr": "*i32",
        "lengths_ptr": "*i32",
    }
    signature |= {"output_ptr": "*fp32", "lse_ptr": "*fp32", "scaling": "fp32"}
    signature |= dict.fromkeys(["num_rows", "num_queries", "num_keys", "num_splits"], "i32")
    strides = [f"{tensor}_{of}" for tensor in ("q_latent", "q_rope") for of in "bhs"]
    strides += [f"{tensor}_{of}" for tensor in ("latent", "rope") for of in "bt"]
    signature |= dict.fromkeys([*strides, *(f"mask_{of}" for of in "bhst")], "i32")
    tiling = _tiling(heads, torch.bfloat16)
    warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
    constants = {**_widths(512, 64), **tiling, "MASK": mask, "LENGTHS": mask == NO_MASK.value}
    return Configuration(name, split_kernel, signature, constants, warps, stages, True, tuple(strides))


def configurations() -> list[Configuration]:
    """Return the kernels at 128 heads (DeepSeek-V3) and 16 (Moonlight): ragged, and with a mask; bf16."""
    numbers = dict.fromkeys(["num_heads", "num_queries", "num_keys", *(f"stride_{of}" for of in "bhst")], "i32")
    return [
        _split_configuration("split_bf16_v3", 128, NO_MASK.value),
        _split_configuration("split_bf16_v3_mask", 128, BOOL_MASK.value),
        _split_configuration("split_bf16_moonlight", 16, NO_MASK.value),
        Configuration(
            "combine_bf16",
            combine_kernel,
            {"partial_ptr": "*fp32", "lse_ptr": "*fp32", "output_ptr": "*bf16", "num_splits": "i32"},
            {"LATENT": 512, "BLOCK_L": 512},
            num_warps=2,
        ),
        Configuration(
            "bounds",
            bounds_kernel,
            {"mask_ptr": "*u8", "bounds_ptr": "*i32", **numbers},
            {"MASK": BOOL_MASK.value, "BLOCK": 1024},
        ),
    ]
