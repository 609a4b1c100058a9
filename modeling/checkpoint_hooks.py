"""`load_state_dict` with the published names: Trainer's resume, sharded loading, and plain use.

Saved tensors have one name per expert, the parameters are fused. Each experts module therefore takes its own
tensors out of what it is given, also when that is only a shard of them.
"""

from typing import Any

import torch
from torch import nn

from .checkpoint_names import Slot, slots
from .fp8 import is_fused_experts


def register_state_dict_hooks(model: nn.Module) -> None:
    """Let the experts and MTP modules in `model` load state dicts with the published names."""
    for module in model.modules():
        if is_fused_experts(module):
            module.register_load_state_dict_pre_hook(_load_experts)
        elif hasattr(module, "enorm") and hasattr(module, "eh_proj"):
            module.register_load_state_dict_pre_hook(_drop_copies)


def _load_experts(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Copy the tensors of single experts into the fused ones; report what is missing or of another shape."""
    assign = local_metadata.get("assign_to_params_buffers", False)
    for name, fused in module.state_dict(keep_vars=True).items():
        key = prefix + name
        wanted = {slot.disk_name: slot for slot in slots(key, fused.shape)}
        found = [name for name in wanted if name in state_dict]
        if key in wanted or key in state_dict or not found:
            continue
        absent = [name for name in wanted if name not in state_dict]
        missing_keys += absent
        # Into a plain tensor slices are copied, so that a shard with some of the experts will do.
        target: torch.Tensor | None = fused
        if assign or fused.is_meta or type(fused.data) is not torch.Tensor:
            target = None if absent else torch.empty(fused.shape, dtype=fused.dtype)
        for disk_name in found:
            error = _copy(state_dict.pop(disk_name), target, wanted[disk_name])
            if error:
                error_msgs.append(error)
        # The fused tensor itself, so that it does not count as missing; copying it onto itself is a no-op.
        if target is not None:
            state_dict[key] = target
        else:
            error_msgs.append(f"{key}: it is loaded whole or not at all, and {absent[0]} is missing")


def _copy(source: torch.Tensor, target: torch.Tensor | None, slot: Slot) -> str | None:
    if tuple(source.shape) != slot.shape:
        found, expected = tuple(source.shape), slot.shape
        return (
            f"size mismatch for {slot.disk_name}: copying a param with shape {found} from checkpoint, "
            f"the shape in current model is {expected}."
        )
    if target is not None:
        with torch.no_grad():
            target[slot.index].copy_(source)
    return None


def _drop_copies(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Forget an MTP module's copies of embedding and head: the main model's own are used."""
    for name in ("embed_tokens.weight", "shared_head.head.weight"):
        state_dict.pop(prefix + name, None)
