"""The memory of a training step by running it on fake tensors: every tensor that PyTorch would make, and when it goes.

Nothing is estimated by formula: the model's own forward and backward run without data, and the bytes of all storages
that are alive are counted at each operation, those inside seeklet's own operators too. What depends on the data is
taken as it is at worst or on average: every position is labelled, and experts get as many tokens as each other.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from .deepening import find_layers

# Of seeklet's operators, in-tree and where they are installed as a kernel repository.
_OPERATORS = "seeklet"
# What takes hundreds of small steps inside, to the same effect: the weight is expanded, then multiplied.
_AS_WHOLE: dict[str, Any] = {
    "fp8_linear_forward": lambda x, codes, _: x @ x.new_empty(codes.shape).t(),
    "fp8_linear_backward": lambda grad, codes, _: grad @ grad.new_empty(codes.shape),
}
# Taken one after the other, so many experts share the rows of all: each takes a little more than it would, and
# DeepSeek-V3's 256 would take minutes.
_MOST_HIT = 32
_READING = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


@dataclass(frozen=True)
class StepBytes:
    """What a step takes beside weights and optimizer states, in bytes."""

    peak: int
    """Gradients included."""
    gradients_at_peak: int
    activations: tuple[int, ...]
    """The most that is neither weights, optimizer states nor gradients: in the forward pass and loss, in the layers'
    backward pass, and in the embedding's."""
    saved: int
    """What autograd keeps when the forward pass is done."""


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they are alive."""

    def __init__(self, at_once: bool, rows: int, inside: dict[Any, int]):
        super().__init__()
        self.live = self.peak = self.gradients = self.gradients_at_peak = 0
        # Of the forward pass and the loss, of the layers' backward pass, of the embedding's.
        self.phase, self.phases = 0, [0, 0, 0]
        self._known: dict[int, Any] = {}
        self._inside = inside
        # All rows in one expert is how a grouped product of a GPU takes them, in one piece; outside of operators, as
        # quantised experts are, they are taken one after the other there, too.
        self._operators_at_once, self._at_once, self._rows = at_once, False, rows

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor out of the count: one that was there before."""
        storage = tensor.untyped_storage()
        self._known[id(storage)] = weakref.ref(storage, partial(self._forget, id(storage), 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        definition = OPDEFS.get(func.name()) if func.namespace.startswith(_OPERATORS) else None
        if func in _READING and args[0].dtype == torch.int64:
            return self._count_rows(args[0])
        if func is torch.ops.aten.bincount.default:
            result = args[0].new_empty(args[2])
        elif definition is None:
            result = func(*args, **(kwargs or {}))
        else:
            result = self._run_inside(func, definition._init_fn, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _run_inside(self, func: Any, body: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator of ours returns; what it makes inside counts as well, so its Python is run.

        Once for each set of shapes: after that, its outline, with the bytes that it took then.
        """
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key = (func, *((*leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves))
        before, highest = self.live, self.peak
        if key in self._inside:
            result, reached = func(*args, **kwargs), before + self._inside[key]
        else:
            rows = max((tensor.numel() for tensor in tensors if tensor.dtype == torch.int64), default=0)
            outside = self._at_once, self._rows
            self._at_once, self._rows, self.peak = self._operators_at_once, rows, before
            with self, _KnownData(self):
                result = _AS_WHOLE.get(func._opname, body)(*args, **kwargs)
            self._at_once, self._rows = outside
            reached, self.peak = self.peak, highest
            self._inside[key] = reached - before
        self._reach(reached)
        return result

    def _count_rows(self, number: torch.Tensor) -> int:
        """Return how many rows the expert has whose count is asked for, in a backward pass each by itself."""
        return self.rows_of_experts(number.untyped_storage().nbytes() // number.itemsize)[number.storage_offset()]

    def rows_of_experts(self, experts: int) -> list[int]:
        """Return how many rows each of so many experts gets."""
        if self._at_once:
            return [self._rows, *[0] * (experts - 1)]
        hit = min(experts, _MOST_HIT)
        return [self._rows // hit + (index < self._rows % hit) if index < hit else 0 for index in range(experts)]

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.live += size
        self._reach(self.live)

    def _reach(self, live: int) -> None:
        self.phases[self.phase] = max(self.phases[self.phase], live - self.gradients)
        if live > self.peak:
            self.peak, self.gradients_at_peak = live, self.gradients

    def _forget(self, key: int, size: int, _: Any) -> None:
        self._known.pop(key, None)
        self.live -= size


class _KnownData(TorchFunctionMode):
    """Answers what only data could: all positions count, and no code of an fp8 weight is NaN."""

    def __init__(self, tracker: StorageTracker):
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__getitem__" and _is_mask(args[1]):
            mask = args[1]
            return args[0].reshape(mask.numel(), *args[0].shape[mask.dim() :]).clone()
        if name == "__setitem__" and _is_mask(args[1]):
            return None
        if name == "tolist" and args[0].dtype == torch.int64:
            return self._tracker.rows_of_experts(args[0].numel())
        if name == "__int__":
            # Of the largest code of an fp8 weight: no NaN.
            return 0
        return func(*args, **kwargs)


def trace_step(
    model: nn.Module,
    sequences: int,
    tokens: int,
    micro_batches: int = 1,
    at_once: bool = False,
    inside: dict[Any, int] | None = None,
    **options: Any,
) -> StepBytes:
    """Return what a training step of `model`, in training mode on the meta device, takes at `sequences` x `tokens`.

    Args:
        model: returns a loss for `labels`; stays as it is.
        sequences: of each micro-batch.
        tokens: of each sequence.
        micro_batches: whose gradients add up; from the second on the gradients are there in the forward pass.
        at_once: the experts' rows go through one product, as on a GPU.
        inside: what operators took inside at each set of shapes, with the same `at_once`; is added to.
        options: further arguments of the model's forward.
    """
    # Quantised experts are taken one after the other, outside of any operator.
    rows = sequences * tokens * (getattr(getattr(model, "config", None), "num_experts_per_tok", None) or 0)
    with FakeTensorMode() as fake, _on_cpu(model):
        ids = torch.zeros(sequences, tokens, dtype=torch.int64)
        tracker = StorageTracker(at_once, rows, {} if inside is None else inside)
        for tensor in (*model.parameters(), *model.buffers(), ids):
            tracker.ignore(tensor)
        hooks = [_count_gradient(parameter, tracker) for parameter in model.parameters() if parameter.requires_grad]
        hooks += _tell_phases(model, tracker)
        saved = 0
        try:
            with tracker, _KnownData(tracker):
                for _ in range(micro_batches):
                    tracker.phase = 0
                    loss = model(input_ids=ids, labels=ids, use_cache=False, **options).loss
                    saved = max(saved, tracker.live - tracker.gradients)
                    loss.backward()
                    del loss
        finally:
            for hook in hooks:
                hook.remove()
            model.zero_grad(set_to_none=True)
    assert fake is not None
    return StepBytes(tracker.peak, tracker.gradients_at_peak, tuple(tracker.phases), saved)


def _tell_phases(model: Any, tracker: StorageTracker) -> list[Any]:
    """Have `tracker` told when the gradient reaches the layers, and when the embedding."""

    def tell(phase: int) -> Any:
        def reached(_: torch.Tensor) -> None:
            tracker.phase = max(tracker.phase, phase)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            if isinstance(found, torch.Tensor) and found.requires_grad:
                found.register_hook(reached)

        return hook

    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        return []
    layers = [layer.register_forward_hook(tell(1)) for layer in find_layers(model)]
    return [*layers, model.get_input_embeddings().register_forward_hook(tell(2))]


def _count_gradient(parameter: nn.Parameter, tracker: StorageTracker) -> Any:
    def count(_: torch.Tensor) -> None:
        if id(parameter) not in counted:
            counted.add(id(parameter))
            tracker.gradients += parameter.numel() * parameter.dtype.itemsize

    counted: set[int] = set()
    return parameter.register_post_accumulate_grad_hook(count)


@contextmanager
def _on_cpu(model: nn.Module) -> Iterator[None]:
    """Make the parameters and buffers of `model` fake tensors of the CPU inside the block."""
    places: list[tuple[nn.Module, Any, str, torch.Tensor]] = [
        (module, names, name, tensor)
        for module in model.modules()
        for names in (module._parameters, module._buffers)
        for name, tensor in names.items()
        if tensor is not None
    ]
    made: dict[int, torch.Tensor] = {}
    for _, names, name, tensor in places:
        if id(tensor) not in made:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        names[name] = made[id(tensor)]
    try:
        yield
    finally:
        for _, names, name, tensor in places:
            names[name] = tensor


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
