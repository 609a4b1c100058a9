"""Frozen layers that keep block-fp8 weights as published and dequantise them per use: half the memory of bf16.

They are the base that adapters are trained on: the gradient goes to the input only, and what autograd saves of the
weight is the weight itself. The values are those of the dequantised model, rounded to the dtype of the input.
"""

# T tokens, H hidden, E experts, I expert width, M and N blocks of 128 rows and columns

from collections.abc import Callable

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn

from .checkpoint_names import SCALE, slots
from .kernels.block_fp8.reference import scale_shape
from .kernels.grouped_fp8.op import grouped_fp8, refuse_parametrized
from .kernels.grouped_lora.op import LowRank, grouped_lora
from .kernels.linear.op import fp8_linear

# Absorbed attention reads this matrix at every decode step, so it is dequantised once; it is under 0.2 % of V3.
NEVER_KEPT = ("kv_b_proj",)


class _Fp8Module(nn.Module):
    """Moves between devices like any module; casts (`.to(dtype)`, `.half()`) leave codes and scales as they are."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):
        stored = {id(t) for name, t in self.state_dict(keep_vars=True).items() if name != "bias"}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in stored:
                return fn(tensor)
            like = fn(tensor.new_empty(0))
            return fn(tensor) if like.dtype == tensor.dtype else tensor.to(like.device)

        return super()._apply(move, recurse)


@use_kernel_forward_from_hub("SeekletFp8Linear")
class Fp8Linear(_Fp8Module, nn.Linear):
    """A linear layer with frozen fp8 `weight` (R, C) and fp32 `weight_scale_inv` (M, N).

    A subclass of `nn.Linear`, so that PEFT wraps it. `compute_dtype` is the dtype PEFT makes adapters in.
    """

    weight_scale_inv: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ):
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.compute_dtype = compute_dtype
        self.weight = _frozen_codes((out_features, in_features), device)
        self.register_buffer("weight_scale_inv", torch.ones(scale_shape(out_features, in_features), device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=compute_dtype, device=device)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (..., R) for `x` (..., C), in the dtype of `x`."""
        output = fp8_linear(x, self.weight, self.weight_scale_inv)
        return output if self.bias is None else output + self.bias.to(output.dtype)


@use_kernel_forward_from_hub("SeekletFp8Experts")
class Fp8Experts(_Fp8Module):
    """The routed experts in frozen fp8.

    `gate_up_proj` (E, 2I, H) with `gate_up_proj_scale_inv` (E, 2, M, N): gate and up are separate matrices on disk,
    and blocks do not cross the border; `down_proj` (E, H, I) with `down_proj_scale_inv` (E, M, N).
    """

    gate_up_proj_scale_inv: torch.Tensor
    down_proj_scale_inv: torch.Tensor

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        intermediate_dim: int,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.num_experts = num_experts
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.gate_up_proj = _frozen_codes((num_experts, 2 * intermediate_dim, hidden_dim), device)
        self.down_proj = _frozen_codes((num_experts, hidden_dim, intermediate_dim), device)
        up, down = scale_shape(intermediate_dim, hidden_dim), scale_shape(hidden_dim, intermediate_dim)
        self.register_buffer("gate_up_proj_scale_inv", torch.ones((num_experts, 2, *up), device=device))
        self.register_buffer("down_proj_scale_inv", torch.ones((num_experts, *down), device=device))

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        low_rank: tuple[LowRank, LowRank] | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the chosen experts `top_k_index` (T, K) of `hidden_states` (T, H).

        `low_rank` is what an adapter adds to `gate_up_proj` and to `down_proj`.

        Raises:
            RuntimeError: something else is added to the fp8 codes themselves, as plain PEFT does.
        """
        refuse_parametrized(self)
        inputs = (hidden_states, top_k_index, top_k_weights)
        codes, scales = (self.gate_up_proj, self.down_proj), (self.gate_up_proj_scale_inv, self.down_proj_scale_inv)
        if low_rank is not None:
            return grouped_lora(*inputs, *codes, *low_rank, *scales)
        return grouped_fp8(*inputs, codes[0], scales[0], codes[1], scales[1])

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"num_experts={self.num_experts}, hidden={self.hidden_dim}, intermediate={self.intermediate_dim}"


def _frozen_codes(shape: tuple[int, ...], device: torch.device | str | None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device), requires_grad=False)


def is_fused_experts(module: nn.Module) -> bool:
    """Return whether `module` holds routed experts as fused parameters, of whatever dtype."""
    fused = [module._parameters.get(name) for name in ("gate_up_proj", "down_proj")]
    return all(parameter is not None and parameter.dim() == 3 for parameter in fused)


def install_fp8(model: nn.Module, is_fp8: Callable[[str], bool], compute_dtype: torch.dtype) -> list[str]:
    """Return the names of the modules of `model` replaced by fp8 ones, their weights yet to be loaded.

    Replaced are linear layers and routed experts all of whose weights `is_fp8` by their name on disk, except
    `kv_b_proj`.
    """
    replaced = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith(NEVER_KEPT) and is_fp8(f"{name}.weight"):
            new = Fp8Linear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                device=module.weight.device,
                compute_dtype=compute_dtype,
            )
        elif is_fused_experts(module) and all(is_fp8(name) for name in _disk_names(name, module)):
            gate_up = module.get_parameter("gate_up_proj")
            experts, width, hidden = gate_up.shape
            new = Fp8Experts(experts, hidden, width // 2, device=gate_up.device)
        else:
            continue
        model.set_submodule(name, new)
        replaced.append(name)
    return replaced


def _disk_names(name: str, experts: nn.Module) -> list[str]:
    shapes = {key: experts.get_parameter(key).shape for key in ("gate_up_proj", "down_proj")}
    return [slot.disk_name for key, shape in shapes.items() for slot in slots(f"{name}.{key}", shape)]


def scale_key(key: str) -> str:
    """Return the state-dict key of the scales of the fp8 weight `key`."""
    return key + SCALE
