"""The Triton programs of absorbed MLA decoding: what a mask shows, one split of the keys, all splits together."""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import math

import triton
import triton.language as tl

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
        head, query = (line // num_queries).to(tl.int64), (line % num_queries).to(tl.int64)
        line_ptr = mask_ptr + b * stride_b + head * stride_h + query * stride_s
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
    head, query = (row // num_queries).to(tl.int64), row % num_queries
    column, rope_column = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    real = (row < num_rows)[:, None]
    has_latent, has_rope = (column < LATENT)[None, :], (rope_column < ROPE)[None, :]
    place = b * q_latent_b + head * q_latent_h + query.to(tl.int64) * q_latent_s
    q_latent = tl.load(q_latent_ptr + place[:, None] + column[None, :], mask=real & has_latent, other=0.0)
    place = b * q_rope_b + head * q_rope_h + query.to(tl.int64) * q_rope_s
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
            at = mask_ptr + b * mask_b + (head * mask_h + query.to(tl.int64) * mask_s)[:, None] + key[None, :] * mask_t
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
