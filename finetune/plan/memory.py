"""Memory of each GPU by part, for a recipe on a cluster."""

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ..memory import count_bytes, count_optimizer_bytes, count_paged_bytes
from .activations import Activations, logits_bytes, trace_whole
from .cluster import Cluster
from .companions import find_companions, sampler_share
from .counts import cache_numbers
from .deepening import find_layers
from .request import Request, samples_per_process, setting

# Assumed, and stated in every plan: what PyTorch's allocator cannot reuse of what comes and goes, and what CUDA, cuBLAS
# and NCCL take themselves.
FRAGMENTATION_SHARE = 0.05
CONTEXT_BYTES = 2**30
# FSDP2 gathers the next layer while one is computed.
GATHERED_LAYERS = 2


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU, of the fullest where they differ."""

    weights: int
    gradients: int
    optimizer: int
    companion: int
    """Weights of a reference model or teacher."""
    sampler: int
    """Of a vLLM in the same process, which keeps it for its weights and cache."""
    gathered: int
    """Whole layers that FSDP has gathered for the moment."""
    activations: int
    logits: int
    kv_cache: int
    """While sampling; activations and logits are not there then, and the larger of the two counts."""
    fragmentation: int
    """And what CUDA itself takes."""

    @property
    def total(self) -> int:
        """Return what must be there at once."""
        held = self.weights + self.gradients + self.optimizer + self.companion + self.sampler + self.gathered
        held += self.fragmentation
        return held + max(self.activations + self.logits, self.kv_cache)

    def parts(self) -> dict[str, int]:
        """Return the bytes by the names of the parts, those of the smaller of training and sampling left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.kv_cache > self.activations + self.logits:
            return values | {"activations": 0, "logits": 0}
        return values | {"kv_cache": 0}


def plan_memory(request: Request, cluster: Cluster, model: nn.Module, activations: Activations) -> GpuMemory:
    """Return what the fullest GPU holds; `model` is the request's, on the meta device."""
    number = cluster.num_gpus
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = count_bytes([*model.parameters(), *model.buffers()])
    gradients = count_bytes(trained)
    # Pages wait in the host's memory.
    optimizer = (count_optimizer_bytes(trained, request.optimizer) or 0) - count_paged_bytes(trained, request.optimizer)
    batch = request.micro_batch * request.tokens
    gathered, share = 0, 1.0
    if request.layout == "fsdp":
        gathered = _gathered_bytes(model, request)
        weights, gradients, optimizer = weights // number, gradients // number, optimizer // number
        if request.offload:
            weights = gradients = optimizer = 0
    elif request.expert_parallel > 1:
        # Each GPU holds its part of the experts, and of what is added to them.
        elsewhere = 1 - 1 / request.expert_parallel
        tensors = [*model.named_parameters(), *model.named_buffers()]
        experts = [tensor for name, tensor in tensors if ".experts." in name]
        learning = [tensor for tensor in experts if tensor.requires_grad]
        weights -= int(count_bytes(experts) * elsewhere)
        gradients -= int(count_bytes(learning) * elsewhere)
        optimizer -= int((count_optimizer_bytes(learning, request.optimizer) or 0) * elsewhere)
    elif request.layout == "layers":
        # Layers are the smallest piece that is laid out.
        layer = _largest_layer(model)
        share = min(1.0, 1 / number + 1 / (activations.num_dense + activations.num_sparse))
        weights = min(weights, weights // number + layer // 2)
        gradients, optimizer = -(-gradients // number), -(-optimizer // number)
    companion = find_companions(request).weights
    if request.layout in ("fsdp", "layers"):
        companion //= number
    sampler = int(sampler_share(request) * cluster.gpu.memory_bytes)
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    logits = logits_bytes(request, any(p.requires_grad for p in head.parameters()))
    whole = activations.of(batch, share)
    # vLLM's cache is in its share, and a server's elsewhere.
    rows = 0 if setting(request.recipe, "use_vllm", False) else samples_per_process(request)
    cache = rows * request.tokens * cache_numbers(request.config) * request.compute_dtype.itemsize
    if request.layout == "layers":
        cache //= number
    moving = gathered + max(whole, logits, cache)
    return GpuMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        companion=companion,
        sampler=sampler,
        gathered=gathered,
        activations=max(0, whole - logits),
        logits=logits,
        kv_cache=cache,
        fragmentation=int(FRAGMENTATION_SHARE * moving) + CONTEXT_BYTES,
    )


def predict_training_bytes(request: Request, at_once: bool = False) -> int | None:
    """Return the tensor bytes at the peak of a step in one process, traced whole; None where the model is too large.

    Weights, optimizer states, gradients and activations as they are; without what an allocator adds. `at_once` as in
    `trace.trace_step`: false for a CPU.
    """
    step = trace_whole(request, at_once)
    if step is None:
        return None
    model = request.build()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = count_bytes([*model.parameters(), *model.buffers()])
    return held + (count_optimizer_bytes(trained, request.optimizer) or 0) + step.peak


def _gathered_bytes(model: nn.Module, request: Request) -> int:
    """Return the whole layers of the moment, their gradients too where they are trained."""
    size = request.compute_dtype.itemsize
    largest = 0
    for layer in find_layers(model):
        tensors = list(layer.named_parameters())
        bytes_ = 0
        for name, parameter in tensors:
            number = parameter.numel()
            if request.expert_parallel > 1 and ".experts." in f".{name}":
                number //= request.expert_parallel
            held = min(parameter.dtype.itemsize, size)
            bytes_ += number * (held * GATHERED_LAYERS + (size if parameter.requires_grad else 0))
        largest = max(largest, bytes_)
    return largest


def _largest_layer(model: nn.Module) -> int:
    return max(count_bytes(list(layer.parameters())) for layer in find_layers(model))
