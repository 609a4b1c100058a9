"""The Triton programs of routing, a few tokens each.

Values are compared as integers of the same order, which a warp finds the largest of in one instruction; whatever the
logits are, NaN too, one of them equals the largest, and so an index is always one of an expert.
"""

# T tokens, E experts, K experts chosen per token

import triton
import triton.language as tl

# Below every value: what is taken already, and what fills up to powers of two.
TAKEN = tl.constexpr(-(2**31))
# -inf in the order of `_ordered`: experts of closed groups come after all others, and before none.
CLOSED = tl.constexpr(-2139095041)


@triton.jit
def _ordered(values):
    """Return int32 numbers in the order of fp32 `values`."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(ordered):
    """Return the fp32 value that an ordered number was made of."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _first_largest(ordered, index, axis: tl.constexpr):
    """Return the lowest `index` of the largest numbers along `axis`, and that number."""
    largest = tl.max(ordered, axis=axis, keep_dims=True)
    return tl.min(tl.where(ordered == largest, index, 0x7FFFFFFF), axis=axis, keep_dims=True), largest


@triton.jit
def _sigmoid(x):
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def forward_kernel(
    logits_ptr,
    bias_ptr,
    choice_ptr,
    weights_ptr,
    scores_ptr,
    indices_ptr,
    counts_ptr,
    num_tokens,
    stride_logits,
    stride_choice,
    scaling_factor,
    EXPERTS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOPK_GROUP: tl.constexpr,
    TOP_K: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_CHOICE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Route ROWS tokens. GROUPS, MEMBERS of a group and SLOTS for the chosen are filled up to powers of two."""
    SIZE: tl.constexpr = EXPERTS // NUM_GROUPS
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = tl.arange(0, GROUPS)[None, :, None]
    member = tl.arange(0, MEMBERS)[None, None, :]
    expert = group * SIZE + member
    is_expert = (group < NUM_GROUPS) & (member < SIZE)
    row_ptr = logits_ptr + token * stride_logits
    mask = is_expert & (token < num_tokens)[:, None, None]
    logits = tl.load(row_ptr[:, None, None] + expert, mask=mask, other=float("-inf"))
    largest = tl.zeros((ROWS, 1, 1), tl.float32)
    total = largest
    if SOFTMAX:
        largest = tl.max(tl.max(logits, axis=2, keep_dims=True), axis=1, keep_dims=True)
        scores = tl.exp(logits - largest)
        total = tl.sum(tl.sum(scores, axis=2, keep_dims=True), axis=1, keep_dims=True)
        scores = tl.div_rn(scores, tl.broadcast_to(total, scores.shape))
    else:
        scores = _sigmoid(logits)
    biased = scores + tl.load(bias_ptr + expert, mask=is_expert, other=0.0).to(tl.float32)
    ordered = tl.where(is_expert, _ordered(biased), TAKEN)

    if NUM_GROUPS > 1:
        first, largest_of_group = _first_largest(ordered, expert, 2)
        group_score = _value(largest_of_group)
        if SIZE > 1:
            second = tl.max(tl.where(expert == first, TAKEN, ordered), axis=2, keep_dims=True)
            group_score += _value(second)
        group_ordered = tl.where(group < NUM_GROUPS, _ordered(group_score), TAKEN)
        is_open = group < 0
        for _ in tl.static_range(TOPK_GROUP):
            first_group, _ = _first_largest(group_ordered, group, 1)
            is_open |= group == first_group
            group_ordered = tl.where(group == first_group, TAKEN, group_ordered)
        ordered = tl.where(is_open | ~is_expert, ordered, CLOSED)

    ordered = ordered.reshape(ROWS, GROUPS * MEMBERS)
    expert = tl.broadcast_to(expert, (ROWS, GROUPS, MEMBERS)).reshape(ROWS, GROUPS * MEMBERS)
    slot = tl.arange(0, SLOTS)[None, :]
    chosen = tl.zeros((ROWS, SLOTS), tl.int32)
    for position in tl.static_range(TOP_K):
        best, _ = _first_largest(ordered, expert, 1)
        ordered = tl.where(expert == best, TAKEN, ordered)
        chosen = tl.where(slot == position, tl.minimum(best, EXPERTS - 1), chosen)

    inside = (token < num_tokens)[:, None] & (slot < TOP_K)
    if HAS_CHOICE:
        asked = tl.load(choice_ptr + token[:, None] * stride_choice + slot, mask=inside, other=-1)
        chosen = tl.where(asked >= 0, asked.to(tl.int32), chosen)
    valid = inside & (chosen < EXPERTS)
    score = tl.load(row_ptr[:, None] + chosen, mask=valid, other=float("-inf"))
    if SOFTMAX:
        exponential = tl.exp(score - largest.reshape(ROWS, 1))
        score = tl.div_rn(exponential, tl.broadcast_to(total.reshape(ROWS, 1), exponential.shape))
    else:
        score = _sigmoid(score)
    score = tl.where(valid, score, 0.0)
    weight = score
    if NORMALIZE:
        total_score = tl.sum(score, axis=1, keep_dims=True) + 1e-20
        weight = tl.div_rn(score, tl.broadcast_to(total_score, score.shape))
    place = token[:, None] * TOP_K + slot
    tl.store(weights_ptr + place, weight * scaling_factor, mask=inside)
    tl.store(scores_ptr + place, score, mask=inside)
    tl.store(indices_ptr + place, chosen.to(tl.int64), mask=inside)
    if COUNT:
        tl.atomic_add(counts_ptr + chosen, 1, mask=valid, sem="relaxed")


@triton.jit
def backward_kernel(
    grad_ptr,
    logits_ptr,
    scores_ptr,
    indices_ptr,
    grad_logits_ptr,
    num_tokens,
    stride_logits,
    scaling_factor,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Write whole rows of the logits' gradient, zero where an expert was not chosen and scores are sigmoids."""
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = token < num_tokens
    total = tl.zeros((ROWS,), tl.float32) + 1e-20
    along = tl.zeros((ROWS,), tl.float32)
    for position in tl.static_range(TOP_K):
        score = tl.load(scores_ptr + token * TOP_K + position, mask=real, other=0.0)
        grad = tl.load(grad_ptr + token * TOP_K + position, mask=real, other=0.0)
        total += score
        along += grad * score
    # w = c s / sum(s): dw_j / ds_k = c (1[j = k] - s_j / sum(s)) / sum(s)
    offset, factor = along * 0.0, along * 0.0 + scaling_factor
    if NORMALIZE:
        offset = along / total
        factor = scaling_factor / total

    expert = tl.arange(0, BLOCK)[None, :]
    mask = real[:, None] & (expert < EXPERTS)
    grad_logits = tl.zeros((ROWS, BLOCK), tl.float32)
    mean = tl.zeros((ROWS,), tl.float32)
    for position in tl.static_range(TOP_K):
        score = tl.load(scores_ptr + token * TOP_K + position, mask=real, other=0.0)
        grad = tl.load(grad_ptr + token * TOP_K + position, mask=real, other=0.0)
        index = tl.load(indices_ptr + token * TOP_K + position, mask=real, other=-1)
        grad = (grad - offset) * factor * score
        if SOFTMAX:
            mean += grad
        else:
            grad *= 1.0 - score
        grad_logits += tl.where(expert == index[:, None], grad[:, None], 0.0)
    if SOFTMAX:
        logits = tl.load(logits_ptr + token[:, None] * stride_logits + expert, mask=mask, other=float("-inf"))
        exponential = tl.exp(logits - tl.max(logits, axis=1, keep_dims=True))
        grad_logits -= exponential / tl.sum(exponential, axis=1, keep_dims=True) * mean[:, None]
    tl.store(grad_logits_ptr + token[:, None] * EXPERTS + expert, grad_logits, mask=mask)
