"""MLA attention as a torch operator: keys in two parts, differentiable, opaque to torch.compile."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


def joined(
    q_nope: torch.Tensor, q_rope: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key (B, H, S or T, N + R), the rope key of all heads in each of them."""
    expanded = k_rope.unsqueeze(1).expand(-1, k_nope.shape[1], -1, -1)
    return torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, expanded), dim=-1)


def _whole_mask(
    mask: torch.Tensor | None, first_keys: torch.Tensor | None, num_queries: int, num_keys: int
) -> torch.Tensor | None:
    """Return what the reference takes for both: None, or a mask of four dimensions."""
    if first_keys is not None:
        keys = torch.arange(num_keys, device=first_keys.device)
        causal = keys <= torch.arange(num_keys - num_queries, num_keys, device=first_keys.device)[:, None]
        seen = causal & (keys >= first_keys[:, None, :, None])
        if mask is not None:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        else:
            mask = seen
    if mask is None:
        return None
    mask = mask.expand(*mask.shape[:-2], num_queries, num_keys)
    return mask[(None,) * (4 - mask.dim())]


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
    if runs_triton(q_nope):
        from . import kernel

        if kernel.takes(q_nope, q_rope, k_nope, k_rope, value, mask):
            return kernel.forward(kernel.Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling))
    query, key = joined(q_nope, q_rope, k_nope, k_rope)
    mask = _whole_mask(mask, first_keys, query.shape[2], key.shape[2])
    # The reference makes its weights again from the scores alone.
    lse = q_nope.new_zeros(q_nope.shape[:3], dtype=torch.float32)
    return reference.mla_attention_forward(query, key, value, mask, scaling), lse


def _by_token(tensor, heads: int, tokens: int, width: int):
    return tensor.new_empty(tensor.shape[0], tokens, heads, width).transpose(1, 2)


@_forward.register_fake
def _(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling):
    heads, queries = q_nope.shape[1:3]
    return _by_token(value, heads, queries, value.shape[-1]), q_nope.new_empty(q_nope.shape[:3], dtype=torch.float32)


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
    if runs_triton(q_nope):
        from . import kernel

        if kernel.takes(q_nope, q_rope, k_nope, k_rope, value, mask):
            inputs = kernel.Inputs(q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling)
            return kernel.backward(grad, output, lse, inputs)
    query, key = joined(q_nope, q_rope, k_nope, k_rope)
    mask = _whole_mask(mask, first_keys, query.shape[2], key.shape[2])
    grad_query, grad_key, grad_value = reference.mla_attention_backward(grad, query, key, value, mask, output, scaling)
    nope = q_nope.shape[-1]
    wide = torch.promote_types(grad_key.dtype, torch.float32)
    grad_k_rope = grad_key[..., nope:].sum(1, dtype=wide).to(grad_key.dtype)
    # Operators return no views of one tensor.
    parts = (grad_query[..., :nope], grad_query[..., nope:], grad_key[..., :nope])
    a, b, c, d = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (*parts, grad_value))
    return a, b, c, grad_k_rope, d


@_backward.register_fake
def _(grad, output, lse, q_nope, q_rope, k_nope, k_rope, value, mask, first_keys, scaling):
    heads, queries, keys = q_nope.shape[1], q_nope.shape[2], k_nope.shape[2]
    return (
        _by_token(q_nope, heads, queries, q_nope.shape[-1]),
        _by_token(q_nope, heads, queries, q_rope.shape[-1]),
        _by_token(q_nope, heads, keys, k_nope.shape[-1]),
        k_rope.new_empty(k_rope.shape),
        _by_token(q_nope, heads, keys, value.shape[-1]),
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
