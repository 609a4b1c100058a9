"""Switching a model's layers to fused kernels and back, with a table of what runs where."""

import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any, Literal, NamedTuple

import kernels
import torch
from kernels import CUDAProperties, Device, Mode, use_kernel_mapping
from torch import nn

from .kernels import launch, layers

MODES = {"training": Mode.TRAINING, "inference": Mode.INFERENCE}
# transformers' hooks on models of other makers are none of ours.
PREFIX = "Seeklet"


class InTree(NamedTuple):
    """A layer of `seeklet.modeling.kernels`, as the `kernels` library wants its repositories: with a `load()`."""

    layer_name: str

    def load(self) -> type[nn.Module]:
        """Return the layer class."""
        return getattr(layers, self.layer_name)


class Row(NamedTuple):
    """What one kind of layer runs: `kernel` names what replaced its forward, None for its own; `why` says why.

    Where the model's settings leave the layer out, `why` says that, too.
    """

    layer: str
    count: int
    kernel: str | None
    why: str


class KernelTable(tuple[Row, ...]):
    """What `kernelize` did, a row for each kind of layer; printed, it is a table."""

    def __str__(self) -> str:
        """Return the rows in aligned columns."""
        lines = [("layer", "count", "runs", "")]
        lines += [(row.layer, str(row.count), row.kernel or "PyTorch", row.why) for row in self]
        name, count, runs = (max(len(line[column]) for line in lines) for column in range(3))
        return "\n".join(f"{a:{name}}  {b:>{count}}  {c:{runs}}  {d}".rstrip() for a, b, c, d in lines)


def kernel_mapping(deterministic: bool = False) -> dict[str, dict[Any, Any]]:
    """Return hook name → device → layer of every kernel here, for `kernels.register_kernel_mapping` and the like.

    With `deterministic`, only those that give the same bits every time.
    """
    devices = [
        Device(type=kind, properties=CUDAProperties(layers.MIN_CAPABILITY, sys.maxsize) if kind == "cuda" else None)
        for kind in sorted(launch.TRITON_DEVICES)
    ]
    mapping: dict[str, dict[Any, Any]] = {}
    for name, layer in inspect.getmembers(layers, inspect.isclass):
        if name.startswith(PREFIX) and not (deterministic and name in layers.NOT_DETERMINISTIC):
            mode = Mode.FALLBACK if vars(layer)["has_backward"] else Mode.INFERENCE | Mode.TORCH_COMPILE
            mapping[name] = {device: {mode: InTree(name)} for device in devices}
    return mapping


def kernelize(
    model: nn.Module,
    mode: Literal["training", "inference"] | None = None,
    device: str | torch.device | None = None,
    deterministic: bool = False,
    mapping: Mapping[str, Mapping[Any, Any]] | None = None,
    quiet: bool = False,
) -> KernelTable:
    """Replace the forward of the model's layers by fused kernels; print and return what now runs.

    Where there is no fitting kernel (no GPU, one too old, none for training), the layer keeps its own forward, and the
    table says why; a kernel that fails to load or to fit raises. `torch.compile` and gradient checkpointing work as
    before. `unkernelize` undoes it; calling it again, for another mode or device, replaces what was there.

    Args:
        model: any module with seeklet's layers in it, in place.
        mode: kernels without a backward pass are left out for "training"; None asks `model.training`.
        device: where the model runs; None asks its first parameter.
        deterministic: leave out kernels whose last bits may differ between runs.
        mapping: kernels to take in place of seeklet's, by hook name, as `kernels.use_kernel_mapping` takes them.
        quiet: do not print the table.

    Raises:
        ValueError: an unknown mode, or a model without parameters and no `device`.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: 'training', 'inference', or None for what the model is set to")
    chosen = MODES[mode or ("training" if model.training else "inference")] | Mode.TORCH_COMPILE
    kind = torch.device(device).type if device is not None else _device_type(model)
    ours = kernel_mapping(deterministic)
    theirs = {name: dict(given) for name, given in (mapping or {}).items()}
    hooked = list(_hooked_modules(model))
    counts = Counter(hook for hook, _ in hooked)
    whys = {hook: None if hook in theirs else _why_not(hook, kind, chosen, ours) for hook in counts}
    with use_kernel_mapping({**ours, **theirs}, inherit_mapping=False):
        for hook, module in hooked:
            if whys[hook] is None:
                _replace(module, chosen, kind)
            else:
                _restore(module)
    if kind in launch.TRITON_DEVICES and any(hook not in theirs and why is None for hook, why in whys.items()):
        launch.take_triton(True)
    names = {hook: _name(theirs.get(hook)) for hook in counts}
    table = KernelTable(
        Row(hook, counts[hook], names[hook], _left_out(model, hook, chosen))
        if why is None
        else Row(hook, counts[hook], None, why)
        for hook, why in sorted(whys.items())
    )
    if not quiet:
        print(table)
    return table


def unkernelize(model: nn.Module) -> None:
    """Give every layer of the model its own forward back, whichever kernels it had.

    Operators of other models in this process take no kernels any more, either, until `kernelize` is called again.
    """
    restored = [_restore(module) for _, module in _hooked_modules(model)]
    if any(restored):
        launch.take_triton(False)


def _hooked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for module in model.modules():
        hook = getattr(type(module), "kernel_layer_name", "")
        if hook.startswith(PREFIX):
            yield hook, module


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError(f"{type(model).__name__} has no parameters to tell its device by; give device='cuda'")
    return parameter.device.type


def _why_not(hook: str, kind: str, mode: Any, mapping: Mapping[str, Any]) -> str | None:
    """Return why a layer cannot take a kernel of seeklet's, in a few words; None where it can."""
    layer = getattr(layers, hook, None)
    if layer is None:
        return "PyTorch's own is what there is"
    if hook not in mapping:
        return "the kernel is not deterministic"
    if kind not in launch.TRITON_DEVICES:
        return f"the kernel needs a CUDA GPU; the model is on {kind}"
    if importlib.util.find_spec("triton") is None:
        return "the kernel needs triton, which is not installed"
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "the kernel needs a CUDA GPU, and torch sees none"
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < layers.MIN_CAPABILITY:
            needed = f"{layers.MIN_CAPABILITY // 10}.{layers.MIN_CAPABILITY % 10}"
            return f"the kernel needs compute capability {needed}; this GPU has {major}.{minor}"
    if Mode.TRAINING in mode and not layer.has_backward:
        return "the kernel has no backward pass; kernelize for inference takes it"
    return None


def _left_out(model: nn.Module, hook: str, mode: Any) -> str:
    """Return which setting of the model keeps a layer's kernel from being called; nothing where none does."""
    attention: Any = next((each for each in model.modules() if hasattr(type(each), "attends_by_kernel")), None)
    if attention is None or hook not in ("SeekletMLAAttention", "SeekletMLADecode"):
        return ""
    implementation = attention.config._attn_implementation
    if implementation == "eager" or (implementation != "sdpa" and hook == "SeekletMLAAttention"):
        return f"not called with attn_implementation={implementation!r}; 'sdpa' calls it"
    if Mode.TRAINING in mode and attention.attention_dropout > 0:
        return f"not called in training with attention_dropout={attention.attention_dropout}"
    return ""


def _name(theirs: Mapping[Any, Any] | None) -> str:
    if theirs is None:
        return "fused (Triton)"
    return "; ".join(sorted({str(kernel) for kernel in theirs.values()}))


def _replace(module: Any, mode: Any, kind: str) -> None:
    wrapped = module.forward if hasattr(module, "_hf_hook") else None
    kernels.kernelize(module, mode=mode, device=kind, use_fallback=False)
    if wrapped is not None:
        # accelerate (several devices, offloading) calls `_old_forward` from a forward of its own, which must stay.
        module._old_forward, module.forward = module.forward, wrapped


def _restore(module: Any) -> bool:
    """Give a layer its own forward back; return whether it had a kernel's."""
    own = MethodType(type(module).forward, module)
    if hasattr(module, "_hf_hook"):
        had_kernel = module._old_forward != own
        module._old_forward = own
        return had_kernel
    # Tensor parallelism puts a function there, which must stay; a kernel's forward is a method.
    if not isinstance(vars(module).get("forward"), MethodType):
        return False
    del module.forward
    return True
