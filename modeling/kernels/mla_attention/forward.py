"""MLA attention forward: softmax over blocks of keys of two parts, the rope part shared by all heads."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import triton
import triton.language as tl

from .tiles import LOG2_E, keys_seen, load_rows, scores_of, store_rows


@triton.jit
def forward_kernel(
    q_nope_ptr,
    q_rope_ptr,
    k_nope_ptr,
    k_rope_ptr,
    value_ptr,
    mask_ptr,
    first_ptr,
    end_ptr,
    output_ptr,
    lse_ptr,
    num_queries,
    num_keys,
    scaling,
    q_nope_b,
    q_nope_h,
    q_nope_s,
    q_rope_b,
    q_rope_h,
    q_rope_s,
    k_nope_b,
    k_nope_h,
    k_nope_t,
    k_rope_b,
    k_rope_t,
    value_b,
    value_h,
    value_t,
    mask_b,
    mask_h,
    mask_s,
    mask_t,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    RANGES: tl.constexpr,
    MASK: tl.constexpr,
):
    """Write the output of BLOCK_S queries of a head, and their log-sum-exp to base 2; inf where nothing is seen."""
    # The last queries see most keys: first come those that take longest.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    b, h = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    query = block * BLOCK_S + tl.arange(0, BLOCK_S)
    q_nope = load_rows(q_nope_ptr + b * q_nope_b + h * q_nope_h, query, num_queries, q_nope_s, NOPE, BLOCK_NOPE)
    q_rope = load_rows(q_rope_ptr + b * q_rope_b + h * q_rope_h, query, num_queries, q_rope_s, ROPE, BLOCK_ROPE)
    k_nope_ptr += b * k_nope_b + h * k_nope_h
    k_rope_ptr += b * k_rope_b
    value_ptr += b * value_b + h * value_h
    mask = (mask_ptr + b * mask_b + h * mask_h, mask_s, mask_t)
    first, end = keys_seen(first_ptr + b * num_queries, end_ptr + b * num_queries, query, num_queries, num_keys, RANGES)
    largest = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_S,), tl.float32)
    output = tl.zeros((BLOCK_S, BLOCK_VALUE), tl.float32)
    for start in range(tl.min(first) // BLOCK_T * BLOCK_T, tl.max(end), BLOCK_T):
        key = start + tl.arange(0, BLOCK_T)
        k_nope = load_rows(k_nope_ptr, key, num_keys, k_nope_t, NOPE, BLOCK_NOPE)
        k_rope = load_rows(k_rope_ptr, key, num_keys, k_rope_t, ROPE, BLOCK_ROPE)
        value = load_rows(value_ptr, key, num_keys, value_t, VALUE, BLOCK_VALUE)
        q, k = (q_nope, q_rope), (k_nope, k_rope)
        scores = scores_of(q, k, query, key, (first, end), mask, scaling * LOG2_E, MASK)
        before = largest
        largest = tl.maximum(largest, tl.max(scores, axis=1))
        # Where nothing was seen yet, -inf - -inf is NaN.
        anchor = tl.where(largest == float("-inf"), 0.0, largest)
        p = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(before - anchor)
        total = total * shrink + tl.sum(p, axis=1)
        output = tl.dot(p.to(value.dtype), value, output * shrink[:, None], input_precision="ieee")
    output = output / tl.where(total > 0, total, 1.0)[:, None]
    lse = tl.where(total > 0, largest + tl.log2(total), float("inf"))
    output_ptr += (b * num_queries * HEADS + h) * VALUE
    store_rows(output_ptr, query, num_queries, HEADS * VALUE, output, VALUE, BLOCK_VALUE)
    tl.store(lse_ptr + (b * HEADS + h) * num_queries + query, lse, mask=query < num_queries)
