"""MLA attention backward without atomics: by query for the queries' gradients, by key for keys and values."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import triton
import triton.language as tl

from .tiles import LOG2_E, gradient_of_scores, keys_seen, load_rows, queries_seeing, scores_of, store_rows


@triton.jit
def backward_query_kernel(
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
    grad_ptr,
    delta_ptr,
    grad_q_nope_ptr,
    grad_q_rope_ptr,
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
    """Write the gradients of BLOCK_S queries of a head, and each one's sum of output times gradient (delta)."""
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
    at = (b * num_queries * HEADS + h) * VALUE
    grad = load_rows(grad_ptr + at, query, num_queries, HEADS * VALUE, VALUE, BLOCK_VALUE)
    output = load_rows(output_ptr + at, query, num_queries, HEADS * VALUE, VALUE, BLOCK_VALUE)
    delta = tl.sum(grad.to(tl.float32) * output.to(tl.float32), axis=1)
    line = (b * HEADS + h) * num_queries + query
    tl.store(delta_ptr + line, delta, mask=query < num_queries)
    lse = tl.load(lse_ptr + line, mask=query < num_queries, other=float("inf"))
    grad_q_nope = tl.zeros((BLOCK_S, BLOCK_NOPE), tl.float32)
    grad_q_rope = tl.zeros((BLOCK_S, BLOCK_ROPE), tl.float32)
    for start in range(tl.min(first) // BLOCK_T * BLOCK_T, tl.max(end), BLOCK_T):
        key = start + tl.arange(0, BLOCK_T)
        k_nope = load_rows(k_nope_ptr, key, num_keys, k_nope_t, NOPE, BLOCK_NOPE)
        k_rope = load_rows(k_rope_ptr, key, num_keys, k_rope_t, ROPE, BLOCK_ROPE)
        value = load_rows(value_ptr, key, num_keys, value_t, VALUE, BLOCK_VALUE)
        q, k = (q_nope, q_rope), (k_nope, k_rope)
        scores = scores_of(q, k, query, key, (first, end), mask, scaling * LOG2_E, MASK)
        p = tl.exp2(scores - lse[:, None])
        grad_scores = gradient_of_scores(p, grad, value, delta).to(k_nope.dtype)
        grad_q_nope = tl.dot(grad_scores, k_nope, grad_q_nope, input_precision="ieee")
        grad_q_rope = tl.dot(grad_scores, k_rope, grad_q_rope, input_precision="ieee")
    at = b * num_queries * HEADS + h
    grad_q_nope_ptr += at * NOPE
    grad_q_rope_ptr += at * ROPE
    store_rows(grad_q_nope_ptr, query, num_queries, HEADS * NOPE, grad_q_nope * scaling, NOPE, BLOCK_NOPE)
    store_rows(grad_q_rope_ptr, query, num_queries, HEADS * ROPE, grad_q_rope * scaling, ROPE, BLOCK_ROPE)


@triton.jit
def backward_key_kernel(
    q_nope_ptr,
    q_rope_ptr,
    k_nope_ptr,
    k_rope_ptr,
    value_ptr,
    mask_ptr,
    first_ptr,
    end_ptr,
    lse_ptr,
    grad_ptr,
    delta_ptr,
    grad_k_nope_ptr,
    grad_k_rope_ptr,
    grad_value_ptr,
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
    GROUP: tl.constexpr,
    NOPE_STEP: tl.constexpr,
    VALUE_STEP: tl.constexpr,
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
    """Write the gradients of BLOCK_T keys and values of GROUP heads, and these heads' share of the rope key's."""
    b = tl.program_id(2).to(tl.int64)
    key = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    first_ptr += b * num_queries
    end_ptr += b * num_queries
    from_key = tl.program_id(0) * BLOCK_T
    from_query, to_query = queries_seeing(
        first_ptr, end_ptr, from_key, from_key + BLOCK_T, num_queries, num_keys, RANGES
    )
    k_rope = load_rows(k_rope_ptr + b * k_rope_b, key, num_keys, k_rope_t, ROPE, BLOCK_ROPE)
    grad_k_rope = tl.zeros((BLOCK_T, BLOCK_ROPE), tl.float32)
    for member in range(GROUP):
        h = (tl.program_id(1) * GROUP + member).to(tl.int64)
        k_nope = load_rows(k_nope_ptr + b * k_nope_b + h * k_nope_h, key, num_keys, k_nope_t, NOPE, BLOCK_NOPE)
        value = load_rows(value_ptr + b * value_b + h * value_h, key, num_keys, value_t, VALUE, BLOCK_VALUE)
        grad_k_nope = tl.zeros((BLOCK_T, BLOCK_NOPE), tl.float32)
        grad_value = tl.zeros((BLOCK_T, BLOCK_VALUE), tl.float32)
        line_ptr = (b * HEADS + h) * num_queries
        for start in range(from_query // BLOCK_S * BLOCK_S, to_query, BLOCK_S):
            query = start + tl.arange(0, BLOCK_S)
            first, end = keys_seen(first_ptr, end_ptr, query, num_queries, num_keys, RANGES)
            at = q_nope_ptr + b * q_nope_b + h * q_nope_h
            q_nope = load_rows(at, query, num_queries, q_nope_s, NOPE, BLOCK_NOPE)
            at = q_rope_ptr + b * q_rope_b + h * q_rope_h
            q_rope = load_rows(at, query, num_queries, q_rope_s, ROPE, BLOCK_ROPE)
            at = grad_ptr + (b * num_queries * HEADS + h) * VALUE
            grad = load_rows(at, query, num_queries, HEADS * VALUE, VALUE, BLOCK_VALUE)
            lse = tl.load(lse_ptr + line_ptr + query, mask=query < num_queries, other=float("inf"))
            delta = tl.load(delta_ptr + line_ptr + query, mask=query < num_queries, other=0.0)
            mask = (mask_ptr + b * mask_b + h * mask_h, mask_s, mask_t)
            q, k = (q_nope, q_rope), (k_nope, k_rope)
            scores = scores_of(q, k, query, key, (first, end), mask, scaling * LOG2_E, MASK)
            p = tl.exp2(scores - lse[:, None])
            grad_value = tl.dot(tl.trans(p.to(grad.dtype)), grad, grad_value, input_precision="ieee")
            grad_scores = tl.trans(gradient_of_scores(p, grad, value, delta).to(q_nope.dtype))
            grad_k_nope = tl.dot(grad_scores, q_nope, grad_k_nope, input_precision="ieee")
            grad_k_rope = tl.dot(grad_scores, q_rope, grad_k_rope, input_precision="ieee")
        at = b * num_keys * HEADS + h
        to = grad_k_nope_ptr + at * NOPE_STEP
        store_rows(to, key, num_keys, HEADS * NOPE_STEP, grad_k_nope * scaling, NOPE, BLOCK_NOPE)
        store_rows(grad_value_ptr + at * VALUE_STEP, key, num_keys, HEADS * VALUE_STEP, grad_value, VALUE, BLOCK_VALUE)
    at = (b * (HEADS // GROUP) + tl.program_id(1)) * num_keys * ROPE
    store_rows(grad_k_rope_ptr + at, key, num_keys, ROPE, grad_k_rope * scaling, ROPE, BLOCK_ROPE)
