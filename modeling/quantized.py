"""Frozen layers in 4 or 8 bits a weight, the routed experts too: the base that adapters are trained on (QLoRA).

A matrix is dequantised when it is used, to the dtype of the input, and again in the backward pass: what autograd keeps
of it is its codes. Of the experts, one at a time, and only those that tokens reach. The gradient goes to the input and
to what an adapter adds. Router, norms, embedding and head stay as they are, and `kv_b_proj`, as in `fp8`.
"""

# T tokens, K experts a token, E experts, H hidden, I expert width

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from .blockwise import ROW_BYTES, Quantization, block_size, code_columns, dequantize, quantize
from .checkpoint_names import is_fp8_weight
from .fp8 import NEVER_KEPT, _Fp8Module, is_fused_experts
from .kernels.grouped_experts.reference import backward_loop, forward_loop
from .kernels.grouped_lora import loop
from .kernels.grouped_lora.op import LowRank
from .kernels.grouped_lora.reference import Kept, Projection

LARGEST = "_absmax"


class _Matrix:
    """A matrix that is dequantised by `to(dtype)`, as the loops over experts ask for one."""

    def __init__(self, codes: torch.Tensor, largest: torch.Tensor, quantization: Quantization):
        self.parts = (codes, largest, quantization)

    def to(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantize(*self.parts, dtype)


class _Stack:
    """A stack of matrices that reads as (E, out, in); an expert's is a `_Matrix`, or dense where a dtype is given."""

    def __init__(self, codes: torch.Tensor, largest: torch.Tensor, quantization: Quantization, dtype=None):
        self.codes, self.largest, self.dtype = codes, largest, dtype
        self.quantization: Quantization = quantization
        columns = codes.shape[2] * (1 if quantization == "int8" else 2)
        self.shape = torch.Size((*codes.shape[:2], columns))

    def __getitem__(self, expert: int) -> Any:
        matrix = _Matrix(self.codes[expert], self.largest[expert], self.quantization)
        return matrix if self.dtype is None else matrix.to(self.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes, largest, quantization):
        ctx.save_for_backward(codes, largest)
        ctx.quantization = quantization
        return F.linear(x, dequantize(codes, largest, quantization, x.dtype))

    @staticmethod
    def backward(ctx, *grads):
        codes, largest = ctx.saved_tensors
        return grads[0] @ dequantize(codes, largest, ctx.quantization, grads[0].dtype), None, None, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, indices, weights, quantization, save, *stored):
        gate_up, down = _stacks(stored, quantization, x.dtype)
        output, hidden, rows, counts = forward_loop(x, indices, weights, gate_up, down, save)
        ctx.save_for_backward(weights, hidden, rows, counts, *stored)
        ctx.quantization = quantization
        return output

    @staticmethod
    def backward(ctx, *grads):
        weights, hidden, rows, counts, *stored = ctx.saved_tensors
        gate_up, down = _stacks(stored, ctx.quantization, grads[0].dtype)
        grad = grads[0].contiguous()
        grad_x, grad_weights, *_ = backward_loop(grad, None, weights, gate_up, down, hidden, rows, counts, False)
        return grad_x, None, grad_weights, *(None,) * 6


class _AdaptedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, indices, weights, quantization, save, scalings, keeps, *tensors):
        gate_up, down = _projections(tensors, quantization, scalings, keeps)
        output, kept = loop.forward_loop(x, indices, weights, gate_up, down, save)
        ctx.save_for_backward(x, weights, *tensors, *keeps, *kept)
        ctx.quantization, ctx.scalings = quantization, scalings
        return output

    @staticmethod
    def backward(ctx, *grads):
        x, weights, *tensors = ctx.saved_tensors
        gate_up, down = _projections(tensors[:8], ctx.quantization, ctx.scalings, tensors[8:10])
        needed = any(ctx.needs_input_grad[11:])
        kept = Kept(*tensors[10:])
        grad_x, grad_weights, *factors = loop.backward_loop(
            grads[0].contiguous(), x, weights, gate_up, down, kept, needed
        )
        return grad_x, None, grad_weights, *(None,) * 8, *(factors if needed else (None,) * 4)


def _stacks(stored, quantization: Quantization, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    return _Stack(stored[0], stored[1], quantization, dtype), _Stack(stored[2], stored[3], quantization, dtype)


def _projections(tensors, quantization: Quantization, scalings, keeps) -> tuple[Projection, Projection]:
    gate_up, down = _stacks(tensors, quantization)
    return (
        Projection(gate_up, None, tensors[4], tensors[5], scalings[0], keeps[0]),
        Projection(down, None, tensors[6], tensors[7], scalings[1], keeps[1]),
    )


class QuantizedLinear(_Fp8Module, nn.Linear):
    """A linear layer whose `weight` is codes, with the largest magnitudes of its blocks in `weight_absmax`.

    A subclass of `nn.Linear`, so that PEFT wraps it. `compute_dtype` is the dtype PEFT makes adapters in.
    """

    weight_absmax: torch.Tensor

    def __init__(self, module: nn.Linear, quantization: Quantization, name: str, twice: bool = False):
        nn.Module.__init__(self)
        self.in_features, self.out_features = module.in_features, module.out_features
        self.quantization: Quantization = quantization
        self.compute_dtype = module.weight.dtype
        _add_codes(self, "weight", module.weight, quantization, f"{name}.weight", twice)
        self.bias = module.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (..., R) for `x` (..., C), in the dtype of `x`."""
        x = _autocast(x)
        output = cast(torch.Tensor, _Product.apply(x, self.weight, self.weight_absmax, self.quantization))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Return sizes and type."""
        return f"{super().extra_repr()}, {self.quantization}"


class QuantizedExperts(_Fp8Module):
    """The routed experts: codes of `gate_up_proj` (E, 2I, H) and `down_proj` (E, H, I), each with its `…_absmax`."""

    gate_up_proj_absmax: torch.Tensor
    down_proj_absmax: torch.Tensor

    def __init__(self, module: nn.Module, quantization: Quantization, name: str, twice: bool = False):
        super().__init__()
        self.quantization: Quantization = quantization
        for key in ("gate_up_proj", "down_proj"):
            _add_codes(self, key, module.get_parameter(key), quantization, f"{name}.{key}", twice)

    def weight_shape(self, key: str) -> torch.Size:
        """Return the shape (E, out, in) of the weight that the codes `key` stand for."""
        codes, largest = self.get_parameter(key), self.get_buffer(key + LARGEST)
        return _Stack(codes, largest, self.quantization).shape

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the chosen experts `top_k_index` (T, K) of `hidden_states` (T, H).

        `low_rank` is what an adapter adds to `gate_up_proj` and to `down_proj`.
        """
        x = _autocast(hidden_states)
        stored = (self.gate_up_proj, self.gate_up_proj_absmax, self.down_proj, self.down_proj_absmax)
        factors = () if low_rank is None else [factor for term in low_rank for factor in term[:2]]
        save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, top_k_weights, *factors))
        given = (x, top_k_index, top_k_weights, self.quantization, save)
        if low_rank is None:
            return cast(torch.Tensor, _Experts.apply(*given, *stored))
        up, down = low_rank
        scalings = tuple(term.scaling / (1 - term.dropout) for term in low_rank)
        width = self.weight_shape("down_proj")[2]
        keeps = (_draw(x, x.shape, up.dropout), _draw(x, (top_k_index.numel(), width), down.dropout))
        return cast(torch.Tensor, _AdaptedExperts.apply(*given, scalings, keeps, *stored, *factors))

    def extra_repr(self) -> str:
        """Return sizes and type."""
        shapes = [tuple(self.weight_shape(key)) for key in ("gate_up_proj", "down_proj")]
        return f"gate_up_proj={shapes[0]}, down_proj={shapes[1]}, {self.quantization}"


def _draw(like: torch.Tensor, shape: tuple[int, ...], dropout: float) -> torch.Tensor | None:
    return torch.rand(shape, device=like.device) >= dropout if dropout else None


def _autocast(x: torch.Tensor) -> torch.Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _add_codes(
    module: nn.Module, key: str, dense: torch.Tensor, quantization: Quantization, name: str, twice: bool
) -> None:
    *rows, columns = dense.shape
    blocks = columns // block_size(columns, name)
    codes = torch.zeros((*rows, code_columns(columns, quantization)), dtype=torch.uint8, device=dense.device)
    module.register_parameter(key, nn.Parameter(codes, requires_grad=False))
    width, dtype = (blocks + ROW_BYTES, torch.uint8) if twice else (blocks, torch.float32)
    module.register_buffer(key + LARGEST, torch.zeros((*rows, width), dtype=dtype, device=dense.device))


def install_quantized(model: nn.Module, quantization: Quantization, twice: bool = False) -> list[str]:
    """Return the state-dict keys of the weights of `model` that are codes from now on, yet to be loaded.

    Those are the projections of attention, MLPs and routed experts, except `kv_b_proj`. With `twice` the magnitudes of
    their blocks are quantised, too.

    Raises:
        ConfigError: one has rows that cannot be cut into blocks.
    """
    keys: list[str] = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_fp8_weight(f"{name}.weight") and not name.endswith(NEVER_KEPT):
            model.set_submodule(name, QuantizedLinear(module, quantization, name, twice))
            keys.append(f"{name}.weight")
        elif is_fused_experts(module):
            model.set_submodule(name, QuantizedExperts(module, quantization, name, twice))
            keys += [f"{name}.gate_up_proj", f"{name}.down_proj"]
    return keys


@torch.no_grad()
def put(module: QuantizedLinear | QuantizedExperts, key: str, index: Any, matrix: torch.Tensor) -> None:
    """Quantise `matrix`, or a stack of them, into the part `index` of the weight `key` of `module`."""
    codes, largest = module.get_parameter(key), module.get_buffer(key + LARGEST)
    block, twice = block_size(matrix.shape[-1], key), largest.dtype == torch.uint8
    made, scales = quantize(matrix.flatten(0, -2), module.quantization, block, twice)
    codes[index], largest[index] = made.view(codes[index].shape), scales.view(largest[index].shape)


def is_quantized(model: nn.Module) -> bool:
    """Return whether `model` has weights in 4 or 8 bits that are ours."""
    return any(isinstance(module, QuantizedLinear | QuantizedExperts) for module in model.modules())
