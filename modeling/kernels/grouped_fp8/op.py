"""The routed experts with frozen block-fp8 weights as torch operators: differentiable in the tokens and their weights.

Opaque to torch.compile.
"""

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .._ops import add_op_namespace_prefix, refuse_second_derivative
from ..launch import runs_triton
from . import reference


def _runs_kernel(x: torch.Tensor, gate_up_codes: torch.Tensor, down_codes: torch.Tensor) -> bool:
    if not runs_triton(x):
        return False
    from . import kernel

    return kernel.takes(x, gate_up_codes, down_codes)


@torch.library.custom_op(add_op_namespace_prefix("grouped_fp8_forward"), mutates_args=())
def _forward(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    run = reference.forward
    if _runs_kernel(x, gate_up_codes, down_codes):
        from . import kernel

        run = kernel.forward
    return run(x, indices, weights, gate_up_codes, gate_up_scale, down_codes, down_scale, save)


@torch.library.custom_op(add_op_namespace_prefix("grouped_fp8_quantized_forward"), mutates_args=())
def _forward_quantized(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    run = reference.forward_quantized
    if _runs_kernel(x, gate_up_codes, down_codes):
        from . import kernel

        run = kernel.forward_quantized
    return run(x, indices, weights, gate_up_codes, gate_up_scale, down_codes, down_scale, save)


def _fake(x, indices, weights, gate_up_codes, gate_up_scale, down_codes, down_scale, save):
    gate_up = x.new_empty((indices.numel() if save else 0, gate_up_codes.shape[1]))
    rows = indices.new_empty(indices.numel())
    return torch.empty_like(x), gate_up, rows, indices.new_empty(gate_up_codes.shape[0])


@torch.library.custom_op(add_op_namespace_prefix("grouped_fp8_backward"), mutates_args=())
def _backward(
    grad: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale: torch.Tensor,
    gate_up: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    run = reference.backward
    if _runs_kernel(grad, gate_up_codes, down_codes):
        from . import kernel

        run = kernel.backward
    return run(grad, weights, gate_up_codes, gate_up_scale, down_codes, down_scale, gate_up, rows, counts)


@_backward.register_fake
def _(grad, weights, *rest):
    return torch.empty_like(grad), torch.empty_like(weights)


def _setup_context(ctx, inputs, output):
    _, _, *kept, _ = inputs
    ctx.save_for_backward(*kept, *output[1:])
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx, grad, *_):
    refuse_second_derivative("grouped_fp8")
    # Contiguous, as the gradient of a sum is one number, expanded.
    grads = (None, None) if grad is None else _backward(grad.contiguous(), *ctx.saved_tensors)
    return grads[0], None, grads[1], None, None, None, None, None


for _op in (_forward, _forward_quantized):
    _op.register_fake(_fake)
    _op.register_autograd(_backward_of_op, setup_context=_setup_context)


def _arguments(x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the tokens as autocast wants them, and whether anything is kept for backward."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return x, torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)


def grouped_fp8(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale_inv: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale_inv: torch.Tensor,
) -> torch.Tensor:
    """Return what `grouped_experts` does with the weights dequantised to the dtype of `x`: (T, H).

    No weight is ever in memory but as it is stored, except for one expert's at a time on CPU.

    Args:
        x: tokens (T, H), any floating dtype, and under autocast that of autocast.
        indices: chosen experts (T, K), int64 in [0, E); no expert twice in a row.
        weights: their weights (T, K), fp32 or the dtype of `x`.
        gate_up_codes: float8_e4m3fn (E, 2I, H), gate rows first; frozen.
        gate_up_scale_inv: fp32 (E, 2, M, N), those of gate and of up.
        down_codes: float8_e4m3fn (E, H, I), frozen.
        down_scale_inv: fp32 (E, M, N).

    Kept for backward: the gate_up output (T*K, 2I), indices and weights; not `x`.
    """
    x, save = _arguments(x, weights)
    scaled = (gate_up_codes, gate_up_scale_inv, down_codes, down_scale_inv)
    return _forward(x, indices, weights, *scaled, save)[0]


def grouped_fp8_quantized(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up_codes: torch.Tensor,
    gate_up_scale_inv: torch.Tensor,
    down_codes: torch.Tensor,
    down_scale_inv: torch.Tensor,
) -> torch.Tensor:
    """Return what `grouped_fp8` does with the inputs of both projections rounded to fp8: both operands in fp8.

    A scale is for 128 columns of a row, and products of 128 columns are summed in fp32. The gradient passes by the
    rounding (DeepSeek-V3 report, section 3.3).
    """
    x, save = _arguments(x, weights)
    scaled = (gate_up_codes, gate_up_scale_inv, down_codes, down_scale_inv)
    return _forward_quantized(x, indices, weights, *scaled, save)[0]


def refuse_parametrized(experts: nn.Module) -> None:
    """Raise RuntimeError where something is added to a layer's fp8 codes themselves, as plain PEFT does."""
    if is_parametrized(experts):
        raise RuntimeError(
            "an adapter was added to the fp8 codes of the routed experts, where it changes nothing; "
            "use seeklet.finetune.lora to attach or load it"
        )
