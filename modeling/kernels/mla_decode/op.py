"""Absorbed MLA decoding as a torch operator: differentiable, opaque to torch.compile, without weights."""

# B batch, S query tokens, H heads, T cached tokens, L latent (kv_lora_rank), R rope dimensions

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference
from .flash_mla import flash_mla_takes


@torch.library.custom_op(add_op_namespace_prefix("mla_decode_forward"), mutates_args=())
def _forward(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    lengths: torch.Tensor | None,
) -> torch.Tensor:
    if runs_triton(latent):
        from . import flash_mla, kernel

        if flash_mla_takes(q_latent, q_rope, latent, mask):
            return flash_mla.forward(q_latent, q_rope, latent, rope, lengths, scaling)
        if kernel.takes(q_latent, q_rope, latent, rope):
            return kernel.forward(q_latent, q_rope, latent, rope, mask, lengths, scaling)
    return reference.mla_decode(q_latent, q_rope, latent, rope, mask, scaling, lengths)[0]


@_forward.register_fake
def _(q_latent, q_rope, latent, rope, mask, scaling, lengths):
    return q_latent.new_empty(q_latent.shape)


def _setup_context(ctx, inputs, output):
    *tensors, mask, ctx.scaling, lengths = inputs
    ctx.save_for_backward(*tensors, mask, lengths)


def _backward_of_op(ctx, grad):
    refuse_second_derivative("mla_decode")
    q_latent, q_rope, latent, rope, mask, lengths = ctx.saved_tensors
    grads = reference.mla_decode_backward(grad, q_latent, q_rope, latent, rope, mask, ctx.scaling, lengths)
    return *(grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)), None, None, None


_forward.register_autograd(_backward_of_op, setup_context=_setup_context)


def mla_decode(
    q_latent_BHSL: torch.Tensor,
    q_rope_BHSR: torch.Tensor,
    latent_BTL: torch.Tensor,
    rope_BTR: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    lengths_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the attention output in latent space (B, H, S, L): the first of what the reference returns.

    Every form of mask goes into the kernel; keys before the first and behind the last that a row sees are not read. A
    query that sees nothing gets finite numbers. From 64 heads on FlashMLA runs where it is installed and no mask is
    given. Gradients, which decoding rarely needs, are PyTorch's own, with the scores in memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    B, H, S, L = q_latent_BHSL.shape
    fits = latent_BTL.shape[::2] == (B, L) and rope_BTR.shape[:2] == latent_BTL.shape[:2]
    if not fits or q_rope_BHSR.shape != (B, H, S, rope_BTR.shape[-1]):
        shapes = [tuple(x.shape) for x in (q_latent_BHSL, q_rope_BHSR, latent_BTL, rope_BTR)]
        raise ValueError(f"q_latent, q_rope, latent and rope are {shapes}; allowed: (B, H, S, L), (B, H, S, R), "
                         "(B, T, L) and (B, T, R)")  # fmt: skip
    q_latent, q_rope, latent, rope = (_as_autocast(x) for x in (q_latent_BHSL, q_rope_BHSR, latent_BTL, rope_BTR))
    return _forward(q_latent, q_rope, latent, rope, mask, scaling, lengths_B)


def _as_autocast(tensor: torch.Tensor) -> torch.Tensor:
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
