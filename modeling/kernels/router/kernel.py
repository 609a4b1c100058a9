"""Routing in Triton: scores, group-limited choice, weights and expert counts in one pass over the logits."""

# T tokens, E experts, K experts chosen per token

import torch
import triton

from ..launch import Configuration, device_of
from .programs import backward_kernel, forward_kernel

MAX_EXPERTS = 512
MAX_GROUPS = 16
MAX_TOP_K = 16


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
