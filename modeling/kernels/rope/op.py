"""Rope, alone and with the assembly of queries and keys, as torch operators: opaque to torch.compile."""

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


@torch.library.custom_op(add_op_namespace_prefix("rope_forward"), mutates_args=())
def _forward(
    q: torch.Tensor,
    k_nope: torch.Tensor | None,
    k_rope: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if runs_triton(q):
        from . import kernel

        if kernel.takes(q, k_rope.shape[-1]):
            return kernel.forward(q, k_nope, k_rope, cos, sin, interleaved)
    if k_nope is None:
        rotate = reference.apply_rope_interleaved if interleaved else reference.apply_rope
        query, key = (rotate(x, cos, sin) for x in (q, k_rope))
    else:
        query, key = reference.assemble_query_key(q, k_nope, k_rope, cos, sin, interleaved)
    return _heads_inside(query.to(q.dtype)), _heads_inside(key.to(q.dtype))


@_forward.register_fake
def _(q, k_nope, k_rope, cos, sin, interleaved):
    batch, heads, positions, columns = q.shape
    numbers = heads, 1 if k_nope is None else heads
    query, key = (q.new_empty((batch, positions, number, columns)).transpose(1, 2) for number in numbers)
    return query, key


@torch.library.custom_op(add_op_namespace_prefix("rope_backward"), mutates_args=())
def _backward(
    grad_q: torch.Tensor, grad_k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rotated = cos.shape[-1]
    if runs_triton(grad_q):
        from . import kernel

        if kernel.takes(grad_q, rotated):
            return kernel.backward(grad_q, grad_k, cos, sin, interleaved)
    nope = grad_q.shape[-1] - rotated
    q_back, k_back = (
        reference.rope_backward(grad[..., nope:], cos, sin, interleaved)
        for grad in (grad_q, grad_k.sum(1, keepdim=True))
    )
    q_back = torch.cat((grad_q[..., :nope], q_back.to(grad_q.dtype)), dim=-1)
    return _heads_inside(q_back), _heads_inside(grad_k[..., :nope], copy=True), _heads_inside(k_back.to(grad_q.dtype))


@_backward.register_fake
def _(grad_q, grad_k, cos, sin, interleaved):
    batch, heads, positions, columns = grad_q.shape
    k_heads, rotated = grad_k.shape[1], cos.shape[-1]
    shapes = (heads, columns), (k_heads, columns - rotated), (1, rotated)
    q, k_nope, k_rope = (grad_q.new_empty((batch, positions, *shape)).transpose(1, 2) for shape in shapes)
    return q, k_nope, k_rope


def _heads_inside(x: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """Return `x` (B, H, S, D) in the memory of a (B, S, H, D), as the kernels leave it; a copy where it is a view."""
    x = x.transpose(1, 2)
    return (x.clone(memory_format=torch.contiguous_format) if copy else x.contiguous()).transpose(1, 2)


def _setup_context(ctx, inputs, output):
    _, k_nope, _, cos, sin, interleaved = inputs
    ctx.save_for_backward(cos, sin)
    ctx.interleaved, ctx.has_nope = interleaved, k_nope is not None


def _backward_of_op(ctx, grad_q, grad_k):
    refuse_second_derivative("rope")
    q, k_nope, k_rope = _backward(grad_q, grad_k, *ctx.saved_tensors, ctx.interleaved)
    return q, k_nope if ctx.has_nope else None, k_rope, None, None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def apply_rope(
    q_rope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `q_rope` (B, H, S, R) and `k_rope` (B, 1, S, R) rotated by the tables (B or 1, S, R), in their own dtype.

    Only the tables are kept for backward; they get no gradient.
    """
    return _forward(q_rope, None, k_rope, cos, sin, interleaved)


def assemble_query_key(
    q: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key (B, H, S, N + R) of MLA, their last R columns rotated: the reference in one pass.

    `q` (B, H, S, N + R), `k_nope` (B, H, S, N), `k_rope` (B, 1, S, R). The tables get no gradient.
    """
    return _forward(q, k_nope, k_rope, cos, sin, interleaved)
