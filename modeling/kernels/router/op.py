"""Routing as a torch operator: differentiable in the logits, opaque to torch.compile."""

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


@torch.library.custom_op(add_op_namespace_prefix("router_forward"), mutates_args=())
def _forward(
    logits: torch.Tensor,
    bias: torch.Tensor,
    expert_choice: torch.Tensor | None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    count: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    settings = (scoring_func, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor)
    if runs_triton(logits):
        from . import kernel

        if kernel.takes(logits, n_group, top_k):
            return kernel.forward(logits, bias, expert_choice, *settings, count)
    weights, indices, scores = reference.route_forward(logits, bias, expert_choice, *settings)
    experts = logits.shape[-1]
    counts = torch.bincount(indices.flatten(), minlength=experts) if count else indices.new_empty(0)
    return weights, indices, scores, counts.to(torch.int32)


@_forward.register_fake
def _(
    logits,
    bias,
    expert_choice,
    scoring_func,
    n_group,
    topk_group,
    top_k,
    norm_topk_prob,
    routed_scaling_factor,
    count,
):
    weights, scores = (logits.new_empty((logits.shape[0], top_k)) for _ in range(2))
    counts = logits.new_empty(logits.shape[1] if count else 0, dtype=torch.int32)
    return weights, logits.new_empty(weights.shape, dtype=torch.int64), scores, counts


@torch.library.custom_op(add_op_namespace_prefix("router_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    scores: torch.Tensor,
    indices: torch.Tensor,
    logits: torch.Tensor | None,
    num_experts: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> torch.Tensor:
    run = reference.route_backward
    if runs_triton(scores) and scores.dtype == torch.float32:
        from . import kernel

        run = kernel.backward if num_experts <= kernel.MAX_EXPERTS else run
    return run(grad, scores, indices, logits, num_experts, norm_topk_prob, routed_scaling_factor)


@_backward.register_fake
def _(grad, scores, indices, logits, num_experts, norm_topk_prob, routed_scaling_factor):
    return scores.new_empty((scores.shape[0], num_experts))


def _setup_context(ctx, inputs, output):
    logits, _, _, scoring_func, _, _, _, ctx.norm_topk_prob, ctx.routed_scaling_factor, _ = inputs
    _, indices, scores, _ = output
    # Of a sigmoid the chosen scores say it all, of a softmax they do not.
    ctx.save_for_backward(scores, indices, None if scoring_func == "sigmoid" else logits)
    ctx.num_experts = logits.shape[-1]
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, *_):
    refuse_second_derivative("router")
    grad_logits = None
    if grad is not None:
        sizes = (ctx.num_experts, ctx.norm_topk_prob, ctx.routed_scaling_factor)
        grad_logits = _backward(grad, *ctx.saved_tensors, *sizes)
    return grad_logits, *(None,) * 9


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def route(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    expert_choice: torch.Tensor | None = None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (T, K) and indices (T, K, int64) as the reference does; kept for backward: both, not the logits.

    Where scores are a softmax, the logits are kept too.
    """
    settings = (scoring_func, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor)
    weights, indices, _, _ = _forward(logits_TE, bias_E, expert_choice, *settings, False)
    return weights, indices


def route_and_count(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    expert_choice: torch.Tensor | None = None,
    scoring_func: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `route` does, and how many tokens chose each expert: int32 (E,), counted in the same pass."""
    settings = (scoring_func, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor)
    weights, indices, _, counts = _forward(logits_TE, bias_E, expert_choice, *settings, True)
    return weights, indices, counts
