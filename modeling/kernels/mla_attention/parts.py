"""MLA attention of keys in two parts, by the kernels where they take it and else by the reference; no autograd."""

# B batch, H heads, S queries, T keys, N nope, R rope, V value

from typing import NamedTuple

import torch

from ..launch import runs_triton
from . import reference


class Inputs(NamedTuple):
    """What forward and backward read, nothing expanded or joined.

    Attributes:
        q_nope: (B, H, S, N).
        q_rope: (B, H, S, R).
        k_nope: (B, H, T, N).
        k_rope: (B, T, R), of all heads.
        value: (B, H, T, V).
        mask: None or bool or additive, broadcastable to (B, H, S, T); True: may attend.
        first_keys: None or (B, S), the first key that each query sees; causal from there on.
        scaling: of the scores.
    """

    q_nope: torch.Tensor
    q_rope: torch.Tensor
    k_nope: torch.Tensor
    k_rope: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    first_keys: torch.Tensor | None
    scaling: float


def by_token(tensor: torch.Tensor, heads: int, tokens: int, width: int) -> torch.Tensor:
    """Return an empty (B, H, tokens, width), heads beside each other in memory as projections have them."""
    return tensor.new_empty(tensor.shape[0], tokens, heads, width).transpose(1, 2)


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


def attend(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (B, H, S, V), in memory (B, S, H, V), and what backward asks for besides (B, H, S), fp32."""
    if runs_triton(inputs.q_nope):
        from . import kernel

        if kernel.takes(inputs):
            return kernel.forward(inputs)
    query, key = joined(*inputs[:4])
    mask = _whole_mask(inputs.mask, inputs.first_keys, query.shape[2], key.shape[2])
    # The reference makes its weights again from the scores alone.
    lse = query.new_zeros(query.shape[:3], dtype=torch.float32)
    return reference.mla_attention_forward(query, key, inputs.value, mask, inputs.scaling), lse


def attend_backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    inputs: Inputs,
    grad_k_nope: torch.Tensor,
    grad_value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to q_nope, q_rope and k_rope, given that to the output and what `attend` returned.

    Those to k_nope (B, H, T, N) and value (B, H, T, V) are written to the tensors given: laid out by token, each head a
    constant number of columns behind the one before.
    """
    if runs_triton(inputs.q_nope):
        from . import kernel

        if kernel.takes(inputs):
            return kernel.backward(grad, output, lse, inputs, grad_k_nope, grad_value)
    query, key = joined(*inputs[:4])
    mask = _whole_mask(inputs.mask, inputs.first_keys, query.shape[2], key.shape[2])
    grad_query, grad_key, its_value = reference.mla_attention_backward(
        grad, query, key, inputs.value, mask, output, inputs.scaling
    )
    nope = inputs.q_nope.shape[-1]
    wide = torch.promote_types(grad_key.dtype, torch.float32)
    grad_k_rope = grad_key[..., nope:].sum(1, dtype=wide).to(grad_key.dtype)
    grad_k_nope.copy_(grad_key[..., :nope])
    grad_value.copy_(its_value)
    # Operators return no views of one tensor.
    grad_q_nope, grad_q_rope = (
        part.transpose(1, 2).contiguous().transpose(1, 2) for part in (grad_query[..., :nope], grad_query[..., nope:])
    )
    return grad_q_nope, grad_q_rope, grad_k_rope
