"""What reading the weights takes at its peak: on a GPU beside what is loaded already, and in the host's memory."""

from dataclasses import dataclass

from torch import nn

from seeklet.modeling.checkpoint_load import BUFFER_BYTES

from ..memory import count_bytes, count_optimizer_bytes, count_paged_bytes
from .cluster import Cluster
from .request import Request

# Of the reader, on machines with as many cores as those with GPUs have.
_THREADS = 8


@dataclass(frozen=True)
class Loading:
    """Bytes at the peak of loading."""

    gpu: int
    """Of the fullest GPU."""
    host: int
    """Of each node; while training only what waits there stays."""
    host_in_training: int
    """Of each node: pages of the optimizer, what FSDP has sent there."""


def plan_loading(request: Request, cluster: Cluster, model: nn.Module, weights_of_gpu: int) -> Loading:
    """Return what loading takes where it is streamed a matrix at a time; `model` is the request's, on the meta device.

    A process reads its weights into the host's memory and moves them on, of those that FSDP joins the first alone;
    with `device_map` they go to the GPUs as they are read, each matrix through a buffer, quantised ones whole.
    """
    whole = count_bytes([*model.parameters(), *model.buffers()])
    # A matrix as it is before it is quantised.
    expanded = 0
    if request.recipe.model.quantization:
        size = request.compute_dtype.itemsize
        codes = [p for p in model.parameters() if not p.dtype.is_floating_point]
        largest = max((p.numel() // (p.shape[0] if p.dim() == 3 else 1) for p in codes), default=0)
        per_byte = 1 if request.recipe.model.quantization == "int8" else 2
        expanded = _THREADS * largest * per_byte * size
    moving = _THREADS * BUFFER_BYTES + expanded
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    waiting = count_paged_bytes(trained, request.optimizer)
    if request.layout == "layers":
        return Loading(weights_of_gpu + moving, moving, waiting)
    copies = 1 if request.layout in ("fsdp", "single") else cluster.gpus_per_node
    if request.offload:
        states = count_optimizer_bytes(trained, request.optimizer) or 0
        waiting = (whole + count_bytes(trained) + states) // cluster.nodes
    else:
        waiting *= copies
    read = weights_of_gpu if request.layout == "ddp" else whole
    return Loading(weights_of_gpu, copies * (read + moving), waiting)
