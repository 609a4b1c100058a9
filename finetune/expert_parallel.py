"""Routed experts shared by the processes of a data-parallel run (`trainer.expert_parallel`).

Of N processes in a row each holds an equal part of every layer's experts, and of what an adapter adds to them; all else
is whole on each, and goes through DDP as ever. Tokens find their experts by `modeling.expert_exchange`, so that an
expert gets its gradient of all tokens of the N: DDP leaves the experts out, and where there are more than N processes
they are summed here over those that hold the same ones.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seeklet.modeling.expert_exchange import ExpertExchange
from seeklet.modeling.expert_slices import ExpertSlice, join_last
from seeklet.modeling.fp8 import is_fused_experts
from seeklet.modeling.moe import SeekletMoE

from .errors import RecipeError
from .lora.attach import DEFAULT
from .lora.layers import ExpertsLora

# Where the expert index is: the first dimension of weights, and of A with the rank behind it; the last of B.
Kind = Literal["experts", "lora_A", "lora_B"]


class SharedExperts:
    """What this process holds of a model's routed experts, and how it is put together with what the others hold.

    Attributes:
        exchange: by which tokens get to their experts.
        slice: which part this process has.
    """

    def __init__(self, model: nn.Module, size: int, timeout_s: float = 1800):
        """Keep of the routed experts of `model` this process's part of `size`, of what is still whole.

        Every process has to call this with the same model, before an optimizer or DDP sees it; `size` divides the
        number of processes and that of experts. One that is not heard of for `timeout_s` ends the run.

        Raises:
            RecipeError: nothing is trained but experts, which DDP refuses.
        """
        wait = timedelta(seconds=timeout_s)
        self._world, rank = dist.get_world_size(), dist.get_rank()
        # A group has to be made by all processes, those outside it too.
        rows = [list(range(first, first + size)) for first in range(0, self._world, size)]
        sharing: list[Any] = [dist.new_group(row, timeout=wait) for row in rows]
        self._group = sharing[rank // size]
        self._copies: Any = None
        if self._world > size:
            self._copies = [dist.new_group(list(same), timeout=wait) for same in zip(*rows, strict=True)][rank % size]
        self.slice = ExpertSlice(rank % size, size)
        # The process that writes is the first of all.
        self._is_with_writer = rank < size
        layers = [module for module in model.modules() if isinstance(module, SeekletMoE)]
        self._num_experts = layers[0].num_experts
        # As the launcher says.
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self._world))
        self.exchange = ExpertExchange(self._group, self._num_experts, per_node)
        for layer in layers:
            layer.exchange = self.exchange
        self._kinds = cut_experts(model, self.slice)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if all(name in self._kinds for name in trained):
            raise RecipeError(
                "adapter.targets reaches routed experts alone, and with trainer.expert_parallel something else has to "
                "be trained, by all processes alike; add attention"
            )
        self._names = {id(tensor): name for name, tensor in model.named_parameters() if name in self._kinds}
        # DistributedDataParallel looks for it on the model that it wraps.
        ignored: Any = list(self._kinds)
        model._ddp_params_and_buffers_to_ignore = ignored

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients of experts among `parameters` what DDP makes of the others: the mean over processes."""
        for parameter in parameters:
            if id(parameter) in self._names and parameter.grad is not None:
                if self._copies is not None:
                    dist.all_reduce(parameter.grad, group=self._copies)
                parameter.grad /= self._world

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Return the norm of all gradients, the experts of other processes included, after clipping them to it."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        whole, own = ([p.grad for p in trained if (id(p) in self._names) == is_own] for is_own in (False, True))
        norm = get_total_norm([grad for grad in whole if grad is not None])
        squares = get_total_norm([grad for grad in own if grad is not None]).to(norm) ** 2
        dist.all_reduce(squares, group=self._group)
        total = (norm**2 + squares).sqrt()
        clip_grads_with_norm_(trained, max_norm, total)
        return total

    def whole_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the state dict of `model` with all experts, on the CPU; in the first process, of use nowhere else.

        Of a model with an adapter, the experts it is added to are left out. One tensor after the other is gathered: the
        first process's host has to hold all of them.
        """
        state = {}
        for name, tensor in model.state_dict().items():
            kind = self._kinds.get(name)
            if kind is None:
                state[name] = tensor
            elif kind != "experts" or not isinstance(model, PeftModel):
                state[name] = self._gather(kind, tensor)
        return state

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state dict of `optimizer` as one process would have it; in the first process, as above."""
        return self._map_state(optimizer.state_dict(), optimizer, self._gather)

    def own_optimizer_state(self, whole: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what this process has of a state dict that `whole_optimizer_state` or one process has returned."""
        return self._map_state(whole, optimizer, self._own)

    def own_factor(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return what this process has of a tensor of an adapter, by its name in the adapter's file."""
        kinds: dict[str, Kind] = {key.replace(f".{DEFAULT}.", "."): kind for key, kind in self._kinds.items()}
        return self._own(kinds[name], whole) if name in kinds else whole

    def _own(self, kind: Kind, whole: torch.Tensor) -> torch.Tensor:
        return _part(kind, whole, self.slice, self._num_experts)

    def _gather(self, kind: Kind, part: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor on the CPU where `part` is the first process's; elsewhere `part`."""
        if not self._is_with_writer:
            return part
        part = part.detach().contiguous()
        if self.slice.index:
            dist.send(part, 0, group=self._group)
            return part
        parts = [part.cpu()]
        for other in range(1, self.slice.size):
            received = torch.empty_like(part)
            dist.recv(received, other, group=self._group)
            parts.append(received.cpu())
        return join_last(parts, self._num_experts) if kind == "lora_B" else torch.cat(parts)

    def _map_state(
        self,
        state: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        change: Callable[[Kind, torch.Tensor], torch.Tensor],
    ) -> dict[str, Any]:
        """Return an optimizer's state dict with what is kept of each number of an expert's weights changed."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        changed = {}
        # In one order on all processes, each of which may have to send.
        for number in sorted(state["state"]):
            parameter, values = parameters[number], state["state"][number]
            kind: Kind | None = self._kinds.get(self._names.get(id(parameter), ""))
            changed[number] = {
                key: change(kind, value)
                if kind and isinstance(value, torch.Tensor) and value.dim() == parameter.dim()
                else value
                for key, value in values.items()
            }
        return {**state, "state": changed}


def cut_experts(model: nn.Module, kept: ExpertSlice) -> dict[str, Kind]:
    """Leave of the routed experts of `model`, and of what adapters add to them, this part; return what is cut by name.

    Of the experts' own weights loading may have left out the others already.
    """
    kinds: dict[str, Kind] = {}
    for name, module in model.named_modules():
        if is_fused_experts(module):
            num_experts: Any = module.num_experts
            for key, tensor in module.state_dict(keep_vars=True).items():
                kinds[f"{name}.{key}"] = "experts"
                if tensor.shape[0] == num_experts:
                    tensor.data = _part("experts", tensor.data, kept, num_experts)
        elif isinstance(module, ExpertsLora):
            factors: list[tuple[Kind, nn.ModuleDict]] = [("lora_A", module.lora_A), ("lora_B", module.lora_B)]
            for kind, layers in factors:
                for adapter, layer in layers.items():
                    kinds[f"{name}.{kind}.{adapter}.weight"] = kind
                    weight = layer.get_parameter("weight")
                    weight.data = _part(kind, weight.data, kept, module.num_experts)
            module.num_experts //= kept.size
    return kinds


def _part(kind: Kind, whole: torch.Tensor, kept: ExpertSlice, num_experts: int) -> torch.Tensor:
    part = kept.of_last(whole, num_experts) if kind == "lora_B" else kept.of(whole)
    # A view would keep the whole in memory.
    return part.clone()
