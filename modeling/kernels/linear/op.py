"""Linear layers with frozen block-fp8 weights as torch operators: differentiable in the input only.

Plain weights need none: their products are `reference.linear`, PyTorch's own on a GPU.
"""

# T tokens, R outputs of the layer (rows of the weight), C its inputs

import torch

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..block_fp8.op import quantize_activations
from ..launch import runs_triton
from . import reference


def _runs_kernel(x: torch.Tensor, codes: torch.Tensor) -> bool:
    if not runs_triton(x):
        return False
    from . import kernel

    return kernel.takes(x, codes)


@torch.library.custom_op(add_op_namespace_prefix("fp8_linear_forward"), mutates_args=())
def _forward(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if not _runs_kernel(x, codes):
        return reference.fp8_linear_forward(x, codes, scale)
    from . import kernel

    return kernel.forward(x, codes, scale)


@torch.library.custom_op(add_op_namespace_prefix("fp8_linear_quantized_forward"), mutates_args=())
def _forward_quantized(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if not _runs_kernel(x, codes):
        return reference.fp8_linear_quantized_forward(x, codes, scale)
    from . import kernel

    return kernel.forward_quantized(*quantize_activations(x), codes, scale, x.dtype)


@torch.library.custom_op(add_op_namespace_prefix("fp8_linear_backward"), mutates_args=())
def _backward(grad: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if not _runs_kernel(grad, codes):
        return reference.fp8_linear_backward(grad, codes, scale)
    from . import kernel

    return kernel.backward(grad, codes, scale)


@_backward.register_fake
def _(grad, codes, scale):
    return grad.new_empty((grad.shape[0], codes.shape[1]))


def _fake(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


def _setup_context(ctx, inputs, output):
    _, codes, scale = inputs
    ctx.save_for_backward(codes, scale)


def _backward_of_op(ctx, grad):
    refuse_second_derivative("fp8_linear")
    return _backward(grad, *ctx.saved_tensors) if ctx.needs_input_grad[0] else None, None, None


for _op in (_forward, _forward_quantized):
    _op.register_fake(_fake)
    _op.register_autograd(_backward_of_op, setup_context=_setup_context)


def fp8_linear(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `x @ W.T` (..., R), differentiable in `x` (..., C) only, for the frozen block-fp8 weight W (R, C).

    The values are those of W dequantised to the dtype of `x`; kept for backward: the codes and scales as they are.

    Args:
        x: any float dtype, and under autocast that of autocast, as for `F.linear`.
        codes: float8_e4m3fn (R, C).
        scale: fp32 (M, N), or (P, M, N) where W is P matrices stacked by rows, each with blocks of its own.
    """
    x = _as_autocast(x)
    return _forward(x.reshape(-1, x.shape[-1]), codes, scale).view(*x.shape[:-1], codes.shape[0])


def fp8_linear_quantized(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what `fp8_linear` does with `x` rounded to fp8, a scale for every 128 columns: both operands in fp8.

    The gradient passes by the rounding, and is that of `fp8_linear` (DeepSeek-V3 report, section 3.3).
    """
    x = _as_autocast(x)
    return _forward_quantized(x.reshape(-1, x.shape[-1]), codes, scale).view(*x.shape[:-1], codes.shape[0])


def _as_autocast(x: torch.Tensor) -> torch.Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
