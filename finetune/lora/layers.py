"""How LoRA computes in seeklet's own modules: PEFT's wrappers, their forward split instead of W + s B A built."""

# T tokens, H hidden, E experts, r rank

import copy
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear, ParamWrapper
from torch import nn
from torch.nn import functional as F

from seeklet.modeling.fp8 import Fp8Experts, Fp8Linear
from seeklet.modeling.kernels.grouped_lora.op import LowRank
from seeklet.modeling.moe import SeekletExperts, SeekletRouter
from seeklet.modeling.quantized import QuantizedExperts, QuantizedLinear

from ..errors import AdapterError

OURS = (None, "eager")


class _SplitWrapper(ParamWrapper):
    """PEFT's wrapper of one parameter, with PEFT's tensors, names and merging; dropout is allowed."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, parameter_name: str, config: LoraConfig, **kwargs):
        super().__init__(base_layer, adapter_name, parameter_name, config=_without_dropout(config), **kwargs)
        self._set_dropout(adapter_name, config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter to this parameter."""
        super().update_layer(adapter_name, r, lora_alpha, config=_without_dropout(config), **kwargs)
        self._set_dropout(adapter_name, config)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the parameter.

        Raises:
            AdapterError: it is kept in fp8, or quantised.
        """
        _refuse_codes(self.get_param())
        super().merge(safe_merge, adapter_names)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int] | tuple[None, None]:
        base = self.get_base_layer()
        if not isinstance(base, QuantizedExperts):
            sizes = super()._get_in_out_features(module)
            # Of all processes together: the factors are drawn for all, whoever holds which (`expert_parallel`).
            self.num_experts = getattr(base, "num_experts", self.num_experts)
            return sizes
        # PEFT would take the sizes of the codes, two of which are in a byte.
        self.num_experts, *sizes = base.weight_shape(self.parameter_name)
        self._param_ndim = 3
        return sizes[0], sizes[1]

    def active(self) -> list[tuple[str, float]]:
        """Return (adapter, the dropout that applies now) of the adapters to compute; undo a merge where none may be."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        if self.merged:
            return []
        dropout = {name: layer.p if layer.training else 0.0 for name, layer in self._dropouts().items()}
        return [(name, dropout.get(name, 0.0)) for name in self.active_adapters if name in self.lora_A]

    def _dropouts(self) -> dict[str, nn.Dropout]:
        return {name: layer for name, layer in self.lora_dropout.items() if isinstance(layer, nn.Dropout)}

    def _set_dropout(self, adapter_name: str, config: LoraConfig) -> None:
        if config.lora_dropout:
            self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout)

    def _factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        a: Any = self.lora_A[adapter_name]
        b: Any = self.lora_B[adapter_name]
        return a.weight, b.weight

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if not _is_codes(self.get_param()):
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)
            return
        # PEFT's own would cast the adapter to the dtype of the parameter, which is that of the codes.
        for layers in (self.lora_A, self.lora_B):
            if not any(parameter.is_meta for parameter in layers[adapter_name].parameters()):
                layers[adapter_name].to(self.get_param().device)


class ExpertsLora(_SplitWrapper):
    """LoRA of the routed experts; of the wrappers around one module the outermost computes for all of them."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output (T, H) of the experts with the active adapters."""
        self._check_forward_args(x, *args, **kwargs)
        terms: dict[str, LowRank | None] = {"gate_up_proj": None, "down_proj": None}
        wrapper: nn.Module = self
        while isinstance(wrapper, ExpertsLora):
            terms[wrapper.parameter_name] = wrapper.low_rank()
            wrapper = wrapper.base_layer
        experts: Any = self.get_base_layer()
        if all(term is None for term in terms.values()):
            return experts(x, *args, **kwargs)
        _check_implementation(experts)
        low_rank = [_nothing(_shape(experts, name), x) if term is None else term for name, term in terms.items()]
        return experts(x, *args, low_rank=tuple(low_rank), **kwargs)

    def low_rank(self) -> LowRank | None:
        """Return what the active adapters add to this parameter, several as one of their ranks' sum; None for none.

        Raises:
            AdapterError: several adapters of different dropout are trained at once.
        """
        active = self.active()
        if not active:
            return None
        names, dropouts = zip(*active, strict=True)
        if len(set(dropouts)) > 1:
            raise AdapterError(f"adapters {', '.join(names)} are active with dropout {dropouts}; allowed: one for all")
        factors = [(*self._factors(name), self.scaling[name]) for name in names]
        if len(factors) == 1:
            return LowRank(*factors[0], dropouts[0])
        # Side by side along the rank, which the layout has between expert and input, and before the expert.
        a = torch.cat([a.unflatten(0, (self.num_experts, -1)) for a, _, _ in factors], 1).flatten(0, 1)
        b = torch.cat([(b * scaling).unflatten(1, (-1, self.num_experts)) for _, b, scaling in factors], 1)
        return LowRank(a, b.flatten(1), 1.0, dropouts[0])


class RouterLora(_SplitWrapper):
    """LoRA of the router's matrix; computed in fp32 like the router's own scores."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the router returns, with what the active adapters add to its logits (T, E)."""
        self._check_forward_args(x, *args, **kwargs)
        delta = None
        wide = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            for name, dropout in self.active():
                a, b = (factor.to(wide.dtype) for factor in self._factors(name))
                added = F.linear(F.linear(F.dropout(wide, dropout), a), b) * self.scaling[name]
                delta = added if delta is None else delta + added
        return self.base_layer(x, *args, **kwargs, logits_delta=delta)


class CodesLinearLora(Linear):
    """PEFT's LoRA of a linear layer whose weight is codes, in fp8 or fewer bits: it cannot be merged into them."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any):
        if kwargs.get("parameter_name") is not None:
            raise AdapterError(
                "fp8 and quantised weights are adapted by the name of their layer, not by that of the parameter"
            )
        super().__init__(base_layer, adapter_name, config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to add the adapters to the codes.

        Raises:
            AdapterError: always.
        """
        _refuse_codes(self.get_base_layer().get_parameter("weight"))


# What PEFT wraps in what, beyond its own rules.
CUSTOM_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    SeekletExperts: ExpertsLora,
    Fp8Experts: ExpertsLora,
    SeekletRouter: RouterLora,
    Fp8Linear: CodesLinearLora,
    QuantizedExperts: ExpertsLora,
    QuantizedLinear: CodesLinearLora,
}
# PEFT tells by the name of the class whether a parameter is wrapped already.
for _wrapper in (ExpertsLora, RouterLora):
    _wrapper.__name__ = ParamWrapper.__name__


def _without_dropout(config: LoraConfig) -> LoraConfig:
    # PEFT refuses dropout on parameters, because it cannot split the sum.
    config = copy.copy(config)
    config.lora_dropout = 0.0
    return config


def _is_codes(parameter: torch.Tensor) -> bool:
    return parameter.dtype in (torch.float8_e4m3fn, torch.uint8)


def _refuse_codes(parameter: torch.Tensor) -> None:
    if parameter.dtype == torch.uint8:
        raise AdapterError(
            "an adapter cannot be added to quantised weights; merge it into the checkpoint: seeklet merge"
        )
    if _is_codes(parameter):
        raise AdapterError("an adapter cannot be added to weights kept in fp8; load the model with keep_fp8=False")


def _check_implementation(experts: nn.Module) -> None:
    implementation = getattr(getattr(experts, "config", None), "_experts_implementation", None)
    if implementation not in OURS:
        raise AdapterError(
            f'adapters of routed experts need seeklet\'s own computation, model.set_experts_implementation("eager"); '
            f"it is {implementation!r}"
        )


def _shape(experts: nn.Module, name: str) -> torch.Size:
    return experts.weight_shape(name) if isinstance(experts, QuantizedExperts) else experts.get_parameter(name).shape


def _nothing(shape: torch.Size, x: torch.Tensor) -> LowRank:
    """Return a low-rank term of zeros for a projection of this shape (E, out, in)."""
    experts, out_features, in_features = shape
    return LowRank(x.new_zeros(experts, in_features), x.new_zeros(out_features, experts), 0.0)
