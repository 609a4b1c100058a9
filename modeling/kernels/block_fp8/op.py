"""Block-fp8 as torch operators: weights and activations to codes and back; none of it differentiable."""

# R rows, C columns, M and N blocks of 128 rows and columns

import torch

from .._ops import add_op_namespace_prefix
from ..launch import runs_triton
from . import reference


def _takes(tensor: torch.Tensor) -> bool:
    if not runs_triton(tensor) or tensor.dim() != 2 or tensor.numel() == 0:
        return False
    from . import kernel

    return tensor.dtype in (*kernel.FLOATS, torch.float8_e4m3fn)


@torch.library.custom_op(add_op_namespace_prefix("block_fp8_quantize"), mutates_args=())
def _quantize(weight: torch.Tensor, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not _takes(weight):
        return reference.quantize(weight, power_of_two)
    from . import kernel

    codes, scale = kernel.quantize(weight, power_of_two)
    reference.check_finite(scale)
    return codes, scale


@_quantize.register_fake
def _(weight, power_of_two):
    shape = reference.scale_shape(weight.shape[0], weight.shape[1])
    return weight.new_empty(weight.shape, dtype=torch.float8_e4m3fn), weight.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("block_fp8_quantize_activations"), mutates_args=())
def _quantize_activations(x: torch.Tensor, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not _takes(x):
        codes, scale = reference.quantize_activations(x, power_of_two)
        return codes, scale.t().contiguous().t()
    from . import kernel

    return kernel.quantize_activations(x, power_of_two)


@_quantize_activations.register_fake
def _(x, power_of_two):
    rows, columns = reference.scale_shape(x.shape[0], x.shape[1], reference.ROW_BLOCK)
    scale = x.new_empty((columns, rows), dtype=torch.float32).t()
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), scale


@torch.library.custom_op(add_op_namespace_prefix("block_fp8_dequantize"), mutates_args=())
def _dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    return dequantize_into(out, codes, scale)


@_dequantize.register_fake
def _(codes, scale, dtype):
    return codes.new_empty(codes.shape, dtype=dtype)


def quantize(weight: torch.Tensor, power_of_two: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (R, C) and scales (M, N) of `weight` (R, C), bit by bit as the reference.

    Raises:
        ValueError: `weight` holds an infinity or a NaN. To see that, the host waits for the device.
    """
    return _quantize(weight.detach(), power_of_two)


def quantize_activations(x: torch.Tensor, power_of_two: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (T, C) of `x` (T, C) and scales (T, ceil(C / 128)), one for every 128 columns of each row.

    Nothing is checked: a row's NaN becomes the code of NaN, and an infinity makes its 128 columns NaN. Scales are
    stored column by column.
    """
    return _quantize_activations(x.detach(), power_of_two)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return `code * scale` (R, C) of codes (R, C) and scales (M, N), computed in fp32 and rounded once.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    return _dequantize(codes, scale, dtype)


def dequantize_into(out: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `out` (R, C), of any float dtype and strides, after `code * scale` is written to it."""
    reference.check_shapes(codes, scale)
    if not _takes(codes) or out.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return reference.dequantize(codes, scale, out=out)
    from . import kernel

    return kernel.dequantize(codes, scale.to(torch.float32), out)
