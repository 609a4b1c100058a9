"""MLA attention as a torch operator: keys in two parts, differentiable, opaque to torch.compile."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from .parts import Inputs, attend, attend_backward, by_token


@torch.library.custom_op(add_op_namespace_prefix("mla_attention_forward"), mutates_args=())
def _forward(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    first_keys: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return attend(Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling))


@_forward.register_fake
def _(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling):
    heads, queries = q_nope.shape[1:3]
    return by_token(value, heads, queries, value.shape[-1]), q_nope.new_empty(q_nope.shape[:3], dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("mla_attention_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    first_keys: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling)
    (heads, keys, nope), width = k_nope.shape[1:], value.shape[-1]
    grad_k_nope, grad_value = by_token(k_nope, heads, keys, nope), by_token(value, heads, keys, width)
    grad_q_nope, grad_q_rope, grad_k_rope = attend_backward(grad, output, lse, inputs, grad_k_nope, grad_value)
    return grad_q_nope, grad_q_rope, grad_k_nope, grad_k_rope, grad_value


@_backward.register_fake
def _(grad, output, lse, q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling):
    heads, queries, keys = q_nope.shape[1], q_nope.shape[2], k_nope.shape[2]
    return (
        by_token(q_nope, heads, queries, q_nope.shape[-1]),
        by_token(q_nope, heads, queries, q_rope.shape[-1]),
        by_token(q_nope, heads, keys, k_nope.shape[-1]),
        k_rope.new_empty(k_rope.shape),
        by_token(q_nope, heads, keys, value.shape[-1]),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, _):
    refuse_second_derivative("mla_attention")
    if grad is None:
        return (None,) * 8
    grads = _backward(grad, *ctx.saved_tensors, ctx.scaling)
    return *(each if need else None for each, need in zip(grads, ctx.needs_input_grad, strict=False)), None, None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def mla_attention(
    q_nope_BHSN: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    k_nope_BHTN: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    value_BHTV: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    first_keys_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the attention output (B, H, S, V), laid out in memory as (B, S, H, V): that of the reference.

    Queries and keys come in the parts that the reference wants joined. Kept for backward: the inputs, the output and a
    number a query and head; gradients have the same bits every time. An additive mask takes the reference.

    Args:
        mask: None for causal (the last query stands at the last key), else bool (True: may attend) or additive,
            broadcastable to (B, H, S, T). A query that a bool mask lets attend to nothing gets zeros.
        first_keys_BS: the first key that each query sees, of causal attention: the start of its document where several
            are packed into a row (`first_keys`), the number of padding tokens where a row begins with such.
    """
    tensors = [q_nope_BHSN, q_rope_BHSR, k_nope_BHTN, k_rope_BTR, value_BHTV]
    device = q_nope_BHSN.device.type
    if torch.is_autocast_enabled(device):
        tensors = [x.to(torch.get_autocast_dtype(device)) for x in tensors]
    return _forward(*tensors, mask, first_keys_BS, scaling)[0]


def first_keys(position_ids_BS: torch.Tensor) -> torch.Tensor:
    """Return the first key that each token sees where every document's positions start at 0.

    Positions 0 1 2 0 1 give 0 0 0 3 3: tokens 3 and 4 are the second document.
    """
    return torch.arange(position_ids_BS.shape[-1], device=position_ids_BS.device) - position_ids_BS


def first_keys_of_cu_seqlens(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return the same as `first_keys`, (1, S), from the starts of documents and the end of the last: 0 3 5."""
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens.contiguous(), tokens.to(cu_seqlens.dtype), right=True) - 1
    return cu_seqlens[document][None]
