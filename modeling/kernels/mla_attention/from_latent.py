"""MLA attention from the latent as a torch operator: keys and values are expanded twice, and kept never.

Of a DeepSeek-V3 layer at 8,192 tokens in bf16, `kv_b_proj` and `mla_attention` keep 1,222 MB for backward, 537 of them
expanded keys and values. Without these it is 685 MB, at the price of one product more, 2TL·H(N + V): 275 GFLOP beside
the 9,900 of attention forward and backward.
"""

# B batch, H heads, S queries, T keys, L latent, N nope, R rope, V value

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..linear.reference import matmul, matmul_over_rows
from .parts import Inputs, attend, attend_backward, by_token


def _expanded(latent: torch.Tensor, weight: torch.Tensor, heads: int, nope: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k_nope (B, H, T, N) and value (B, H, T, V), views of what `weight` makes of the latent."""
    made = matmul(latent.flatten(0, 1), weight.t()).view(*latent.shape[:2], heads, -1).transpose(1, 2)
    return made[..., :nope], made[..., nope:]


@torch.library.custom_op(add_op_namespace_prefix("mla_attention_from_latent_forward"), mutates_args=())
def _forward(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    first_keys: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    k_nope, value = _expanded(latent, weight, q_nope.shape[1], q_nope.shape[-1])
    return attend(Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling))


@_forward.register_fake
def _(q_nope, q_rope, latent, k_rope, weight, mask, first_keys, scaling):
    heads, queries, nope = q_nope.shape[1:]
    output = by_token(q_nope, heads, queries, weight.shape[0] // heads - nope)
    return output, q_nope.new_empty(q_nope.shape[:3], dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("mla_attention_from_latent_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    first_keys: torch.Tensor | None,
    scaling: float,
    needs_latent: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, nope = q_nope.shape[1], q_nope.shape[-1]
    k_nope, value = _expanded(latent, weight, heads, nope)
    inputs = Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling)
    # Beside each other, as the projection made them: what its own gradients are products of.
    grad_made = latent.new_empty(*latent.shape[:2], heads, nope + value.shape[-1])
    by_head = grad_made.transpose(1, 2)
    grads = attend_backward(grad, output, lse, inputs, by_head[..., :nope], by_head[..., nope:])
    rows, inner = grad_made.view(-1, weight.shape[0]), latent.flatten(0, 1)
    grad_latent = matmul(rows, weight).view(latent.shape) if needs_latent else latent.new_empty(0)
    grad_weight = matmul_over_rows(rows, inner) if needs_weight else weight.new_empty(0)
    grad_q_nope, grad_q_rope, grad_k_rope = grads
    return grad_q_nope, grad_q_rope, grad_latent, grad_k_rope, grad_weight


@_backward.register_fake
def _(
    grad,
    output,
    lse,
    q_nope,
    q_rope,
    latent,
    k_rope,
    weight,
    mask,
    first_keys,
    scaling,
    needs_latent,
    needs_weight,
):
    heads, queries = q_nope.shape[1:3]
    return (
        by_token(q_nope, heads, queries, q_nope.shape[-1]),
        by_token(q_nope, heads, queries, q_rope.shape[-1]),
        latent.new_empty(latent.shape if needs_latent else 0),
        k_rope.new_empty(k_rope.shape),
        weight.new_empty(weight.shape if needs_weight else 0),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, _):
    refuse_second_derivative("mla_attention_from_latent")
    if grad is None:
        return (None,) * 8
    needs = ctx.needs_input_grad
    grads = _backward(grad, *ctx.saved_tensors, ctx.scaling, needs[2], needs[4])
    return *(each if need else None for each, need in zip(grads, needs, strict=False)), None, None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def mla_attention_from_latent(
    q_nope_BHSN: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    first_keys_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `mla_attention` does of keys and values (B, H, T, N + V) = `latent_BTL @ weight.T`.

    Kept for backward: the inputs, the output and a number a query and head. Keys and values are made again there.

    Args:
        weight: (H * (N + V), L), each head's N rows of keys before its V of values: `kv_b_proj.weight`, whole. Not of a
            layer that is more than its weight (an adapter, a quantised one): expand with the layer and take
            `mla_attention`.
        mask: as `mla_attention` takes it.
        first_keys_BS: likewise.

    Raises:
        ValueError: the rows of `weight` are no multiple of the heads, leave no values, or the latent is not as wide.
    """
    heads, nope = q_nope_BHSN.shape[1], q_nope_BHSN.shape[-1]
    rows, width = weight.shape
    if rows % heads or rows // heads <= nope or width != latent_BTL.shape[-1]:
        raise ValueError(
            f"weight is {tuple(weight.shape)} for {heads} heads of {nope} columns and a latent of "
            f"{latent_BTL.shape[-1]}; allowed: (heads * (columns + those of the values), latent)"
        )
    tensors = [q_nope_BHSN, q_rope_BHSR, latent_BTL, k_rope_BTR, weight]
    device = q_nope_BHSN.device.type
    if torch.is_autocast_enabled(device):
        tensors = [x.to(torch.get_autocast_dtype(device)) for x in tensors]
    return _forward(*tensors, mask, first_keys_BS, scaling)[0]
