"""Routing in Triton: scores, group-limited choice, weights and expert counts in one pass over the logits.

Values are compared as integers of the same order, which a warp finds the largest of in one instruction; whatever the
logits are, NaN too, one of them equals the largest, and so an index is always one of an expert.
"""

# T tokens, E experts, K experts chosen per token

import torch
import triton
import triton.language as tl

from ..launch import Configuration, device_of

MAX_EXPERTS = 512
MAX_GROUPS = 16
MAX_TOP_K = 16

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


def takes(logits_TE: torch.Tensor, n_group: int, top_k: int) -> bool:
    """Return whether the kernels take logits of this dtype and these numbers; the reference takes what they do not."""
    experts = logits_TE.shape[-1]
    sizes = 0 < experts <= MAX_EXPERTS and 1 <= n_group <= MAX_GROUPS and experts % n_group == 0
    return logits_TE.dtype == torch.float32 and sizes and 1 <= top_k <= min(MAX_TOP_K, experts)


def _tiling(experts: int, n_group: int, topk_group: int, top_k: int) -> dict[str, int]:
    # Where no group is closed, there is one.
    groups = n_group if topk_group < n_group else 1
    padded = triton.next_power_of_2(groups), triton.next_power_of_2(experts // groups)
    return {
        "NUM_GROUPS": groups,
        "TOPK_GROUP": min(topk_group, groups),
        "GROUPS": padded[0],
        "MEMBERS": padded[1],
        "SLOTS": triton.next_power_of_2(top_k),
        # Two tokens a warp at 256 experts, and a warp a program: no barriers. With four warps the compiler makes 1,600
        # instructions a token of it, so 844.
        "ROWS": max(1, min(8, 512 // (padded[0] * padded[1]))),
    }


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def forward(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    expert_choice: torch.Tensor | None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    count: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights (T, K) fp32, indices (T, K) int64, their scores (T, K), and counts (E,) int32, empty if not asked.

    `expert_choice` is as in the reference.
    """
    tokens, experts = logits_TE.shape
    logits, choice = _dense_rows(logits_TE), logits_TE if expert_choice is None else _dense_rows(expert_choice)
    weights, scores = (torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device) for _ in range(2))
    indices = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
    counts = torch.zeros(experts if count else 0, dtype=torch.int32, device=logits.device)
    tiling = _tiling(experts, n_group, topk_group, top_k)
    with device_of(logits):
        forward_kernel[(triton.cdiv(tokens, tiling["ROWS"]),)](
            logits,
            bias_E.contiguous(),
            choice,
            weights,
            scores,
            indices,
            counts,
            tokens,
            logits.stride(0),
            choice.stride(0),
            routed_scaling_factor,
            EXPERTS=experts,
            TOP_K=top_k,
            SOFTMAX=scoring_func != "sigmoid",
            NORMALIZE=norm_topk_prob,
            HAS_CHOICE=expert_choice is not None,
            COUNT=count,
            num_warps=1,
            **tiling,
        )
    return weights, indices, scores, counts


def backward(
    grad_TK: torch.Tensor,
    scores_TK: torch.Tensor,
    indices_TK: torch.Tensor,
    logits_TE: torch.Tensor | None,
    num_experts: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> torch.Tensor:
    """Return the gradient (T, E) to the logits; `logits_TE` are given where scores are a softmax of them."""
    tokens, top_k = scores_TK.shape
    logits = scores_TK if logits_TE is None else _dense_rows(logits_TE)
    grad_logits = torch.empty((tokens, num_experts), dtype=torch.float32, device=grad_TK.device)
    block = triton.next_power_of_2(num_experts)
    rows = max(1, min(16, 1024 // block))
    with device_of(grad_TK):
        backward_kernel[(triton.cdiv(tokens, rows),)](
            grad_TK.contiguous(),
            logits,
            scores_TK,
            indices_TK,
            grad_logits,
            tokens,
            logits.stride(0),
            routed_scaling_factor,
            EXPERTS=num_experts,
            TOP_K=top_k,
            BLOCK=block,
            ROWS=rows,
            SOFTMAX=logits_TE is not None,
            NORMALIZE=norm_topk_prob,
            num_warps=4,
        )
    return grad_logits


# experts, n_group, topk_group, top_k, softmax, normalise
PUBLISHED = {
    "v3": (256, 8, 4, 8, False, True),
    "moonlight": (64, 1, 1, 6, False, True),
    "kimi_k2": (384, 1, 1, 8, False, True),
    "v2": (160, 8, 3, 6, True, False),
}


def configurations() -> list[Configuration]:
    """Return the kernels of published models: DeepSeek-V3, Moonlight, Kimi-K2, DeepSeek-V2."""
    found = []
    for name, (experts, n_group, topk_group, top_k, softmax, normalize) in PUBLISHED.items():
        constants = {"EXPERTS": experts, "TOP_K": top_k, "SOFTMAX": softmax, "NORMALIZE": normalize}
        pointers = {"logits_ptr": "*fp32", "scores_ptr": "*fp32", "indices_ptr": "*i64"}
        numbers = {"num_tokens": "i32", "stride_logits": "i32", "scaling_factor": "fp32"}
        for has_choice in (False, True) if name == "v3" else (False,):
            outputs = {"bias_ptr": "*fp32", "weights_ptr": "*fp32", "choice_ptr": "*i64", "counts_ptr": "*i32"}
            flags = {"HAS_CHOICE": has_choice, "COUNT": True}
            found.append(
                Configuration(
                    f"forward_{name}" + ("_replay" if has_choice else ""),
                    forward_kernel,
                    {**pointers, **outputs, **numbers, "stride_choice": "i32"},
                    {**constants, **_tiling(experts, n_group, topk_group, top_k), **flags},
                    num_warps=1,
                    aligned=("stride_logits",),
                )
            )
        block = triton.next_power_of_2(experts)
        found.append(
            Configuration(
                f"backward_{name}",
                backward_kernel,
                {**pointers, **numbers, "grad_ptr": "*fp32", "grad_logits_ptr": "*fp32"},
                {**constants, "BLOCK": block, "ROWS": max(1, min(16, 1024 // block))},
                aligned=("stride_logits",),
            )
        )
    return found
