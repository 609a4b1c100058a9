"""Which of the routed experts a process holds, where several share them: an equal part of each tensor, in order."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from .checkpoint_plan import Plan, Read
from .errors import CheckpointError
from .fp8 import is_fused_experts


@dataclass(frozen=True)
class ExpertSlice:
    """Part `index` of `size` equal ones: of 8 experts, part 1 of 2 is experts 4 to 7."""

    index: int
    size: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this part (E / size, …) of a tensor (E, …); a view."""
        return whole.chunk(self.size)[self.index]

    def of_last(self, whole: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Return this part (out, r * E / size) of a low-rank factor (out, r * E), whose expert index is the fastest."""
        by_part = whole.unflatten(1, (-1, self.size, num_experts // self.size))
        return by_part[:, :, self.index].flatten(1)


def join_last(parts: list[torch.Tensor], num_experts: int) -> torch.Tensor:
    """Return the low-rank factor (out, r * E) of which `ExpertSlice.of_last` took `parts`."""
    per_part = num_experts // len(parts)
    return torch.stack([part.unflatten(1, (-1, per_part)) for part in parts], 2).flatten(1)


def keep_slice(model: PreTrainedModel, plan: Plan, kept: ExpertSlice) -> None:
    """Let `model`, on the meta device, hold only part of its routed experts, and `plan` read no others.

    `plan` was made for all of them, so that what is wrong with any is found by every process.

    Raises:
        CheckpointError: the checkpoint holds all experts of a layer in one tensor, as it is not published.
    """
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if is_fused_experts(module):
            for key, tensor in list(module.state_dict(keep_vars=True).items()):
                sizes[f"{name}.{key}"] = tensor.shape[0] // kept.size
                part = kept.of(tensor.detach())
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, key, nn.Parameter(part, tensor.requires_grad) if is_parameter else part)
    plan.reads[:] = [mine for read in plan.reads if (mine := _kept(read, sizes.get(read.slot.key), kept)) is not None]


def _kept(read: Read, per_part: int | None, kept: ExpertSlice) -> Read | None:
    """Return `read` into what this process holds, or None where it holds nothing of it."""
    if per_part is None:
        return read
    if not read.slot.index or not isinstance(expert := read.slot.index[0], int):
        raise CheckpointError(f"{read.slot.disk_name} holds all experts of a layer; save it with one tensor an expert")
    if expert // per_part != kept.index:
        return None
    return replace(read, slot=replace(read.slot, index=(expert % per_part, *read.slot.index[1:])))


def whole_sizes(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield each parameter and how many weights it holds in all processes that share the experts of `model`.

    Of quantised ones, which are bytes, those that the bytes stand for: two of 4 bits in each.
    """
    shares: dict[int, int] = {}
    for module in model.modules():
        fused, is_4_bit = is_fused_experts(module), getattr(module, "quantization", None) != "int8"
        for parameter in module.parameters(recurse=False):
            parts = getattr(module, "num_experts", parameter.shape[0]) // parameter.shape[0] if fused else 1
            shares[id(parameter)] = parts * (2 if is_4_bit and parameter.dtype == torch.uint8 else 1)
    for parameter in model.parameters():
        yield parameter, parameter.numel() * shares[id(parameter)]
