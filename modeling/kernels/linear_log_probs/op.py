"""Log-probabilities and entropies of a linear head as torch operators: differentiable, opaque to torch.compile."""

# T tokens, H hidden, V vocabulary

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


def runs_kernel(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> bool:
    """Return whether the operator runs its kernels for these tensors, rather than the reference."""
    if not runs_triton(hidden_TH):
        return False
    from . import kernel

    return kernel.takes(hidden_TH, weight_VH)


@torch.library.custom_op(add_op_namespace_prefix("linear_log_probs_forward"), mutates_args=())
def _forward(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if runs_kernel(hidden, weight):
        from . import kernel

        found = kernel.forward(hidden, weight, targets, temperature, with_entropy)
        return found.log_probs, found.entropy, found.normalizer
    log_probs, entropy = reference.linear_log_probs_forward(hidden, weight, targets, temperature)
    # The reference makes its logits and their normaliser again.
    return log_probs, entropy if with_entropy else entropy[:0].clone(), torch.zeros_like(log_probs)


@_forward.register_fake
def _(hidden, weight, targets, temperature, with_entropy):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_probs, normalizer = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(2))
    return log_probs, hidden.new_empty(hidden.shape[0] if with_entropy else 0, dtype=wide), normalizer


@torch.library.custom_op(add_op_namespace_prefix("linear_log_probs_backward"), mutates_args=())
def _backward(
    grad_log_probs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    normalizer: torch.Tensor,
    temperature: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    needs = (needs_hidden, needs_weight)
    if runs_kernel(hidden, weight):
        from . import kernel

        found = kernel.Rows(log_probs, normalizer, entropy)
        inputs = (hidden, weight, targets, found, grad_log_probs, grad_entropy)
        grads = kernel.backward(*inputs, temperature, *needs)
    else:
        if grad_entropy is None:
            entropy, grad_entropy = (torch.zeros_like(grad_log_probs) for _ in range(2))
        inputs = (hidden, weight, targets, entropy, grad_log_probs, grad_entropy)
        grads = reference.linear_log_probs_backward(*inputs, temperature, *needs)
    grad_hidden, grad_weight = (
        tensor.new_empty(0) if grad is None else grad for grad, tensor in zip(grads, (hidden, weight), strict=True)
    )
    return grad_hidden, grad_weight


@_backward.register_fake
def _(
    grad_log_probs,
    grad_entropy,
    hidden,
    weight,
    targets,
    log_probs,
    entropy,
    normalizer,
    temperature,
    needs_hidden,
    needs_weight,
):
    return hidden.new_empty(hidden.shape if needs_hidden else 0), weight.new_empty(weight.shape if needs_weight else 0)


def _setup_context(ctx, inputs, output):
    hidden, weight, targets, ctx.temperature, ctx.with_entropy = inputs
    ctx.save_for_backward(hidden, weight, targets, *output)
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad_log_probs, grad_entropy, _):
    refuse_second_derivative("linear_log_probs")
    grad_entropy = grad_entropy if ctx.with_entropy else None
    grads: list[torch.Tensor | None] = [None, None]
    if grad_log_probs is not None or grad_entropy is not None:
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(ctx.saved_tensors[3])
        needs = ctx.needs_input_grad[:2]
        made = _backward(grad_log_probs, grad_entropy, *ctx.saved_tensors, ctx.temperature, *needs)
        grads = [grad if need else None for grad, need in zip(made, needs, strict=True)]
    return *grads, None, None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def linear_log_probs(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) and the entropy (nats) of softmax(`hidden_TH @ weight_VH.T` / temperature).

    Both are (T,), at least fp32, and differentiable. Kept for backward: the inputs and three numbers a row; no logits,
    which are made again. Logits are not rounded to the dtype of the inputs, as those of the reference are.
    """
    return _forward(*_as_autocast(hidden_TH, weight_VH), targets_T, temperature, True)[:2]


def linear_log_probs_alone(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return what `linear_log_probs` does without the entropies."""
    return _forward(*_as_autocast(hidden_TH, weight_VH), targets_T, temperature, False)[0]


def _as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
