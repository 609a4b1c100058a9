"""A plan: everything known of a recipe on a cluster before a GPU is rented."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..memory import count_bytes
from .activations import Activations, fit_activations
from .calibrate import Calibration
from .cluster import Cluster
from .communication import NO_TRAFFIC, Traffic, layer_traffic, sharded_traffic, training_expert_traffic
from .companions import find_companions
from .counts import Counts, TokenFlops, cache_numbers, count_flops, count_parameters
from .loading import Loading, plan_loading
from .memory import GpuMemory, plan_memory
from .request import Request, samples_per_process
from .speed import EFFICIENCY, Bill, Work, decode_seconds_per_token, make_bill, seconds_per_token


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on a cluster."""

    request: Request
    cluster: Cluster
    counts: Counts
    trained: int
    """Parameters that are trained."""
    flops: TokenFlops
    memory: GpuMemory
    loading: Loading
    activations: Activations
    traffic: Traffic
    """Per token, of one GPU."""
    compute_s: float
    """GPU-seconds of computing per token."""
    waiting_s: float
    """GPU-seconds per token that traffic takes longer than computing, or that GPUs wait for each other."""
    decode_s: float
    """GPU-seconds per token of sampling, in reinforcement learning."""
    efficiency: float
    calibration: Calibration | None
    """What the efficiency was measured by; None where it is assumed or given."""
    tokens: float | None
    """Of the whole run, where the recipe says so."""
    bill: Bill
    """Of the whole run, or else of a billion tokens."""

    @property
    def seconds_per_token(self) -> float:
        """Return the GPU-seconds that a token takes in all."""
        return self.compute_s + self.waiting_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens per second of the whole cluster."""
        return self.cluster.num_gpus / self.seconds_per_token

    @property
    def fits(self) -> bool:
        """Return whether the fullest GPU holds what it must, while loading and while training."""
        return max(self.memory.total, self.loading.gpu) <= self.cluster.gpu.memory_bytes


def make_plan(
    request: Request,
    cluster: Cluster,
    efficiency: float = EFFICIENCY,
    tokens: float | None = None,
    activations: Activations | None = None,
    calibration: Calibration | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Return the plan of a request, at the efficiency of `calibration` where there is one.

    `activations` are traced unless they are given, and `say` is told of it.
    """
    if calibration is not None:
        efficiency = calibration.efficiency
    if activations is None:
        activations = fit_activations(request, say)
    say("counting parameters")
    model: Any = request.build()
    bare = request.build_bare()
    flops = count_flops(bare, request.tokens)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    work = Work(1.0 if request.adapts else 2.0, 1.0 if request.checkpointing else 0.0)
    compute = seconds_per_token(flops, work, cluster.gpu, efficiency)
    companions = find_companions(request)
    compute += companions.flops_per_token / (cluster.gpu.tflops_bf16 * 1e12 * efficiency)
    traffic = _traffic(request, cluster, model, count_bytes(trained))
    if request.layout == "layers":
        # One GPU works at a time.
        waiting = compute * (cluster.num_gpus - 1)
    else:
        waiting = max(0.0, traffic.seconds(cluster) - compute)
    counts = count_parameters(bare)
    decode = _decode_seconds(request, cluster, counts, flops, efficiency)
    tokens = tokens or _tokens_of_run(request, cluster)
    bill = make_bill(tokens or 1e9, compute + waiting + decode, cluster.gpu, cluster.num_gpus)
    memory = plan_memory(request, cluster, model, activations)
    return Plan(
        request=request,
        cluster=cluster,
        counts=counts,
        trained=sum(parameter.numel() for parameter in trained),
        flops=flops,
        memory=memory,
        loading=plan_loading(request, cluster, model, memory.weights),
        activations=activations,
        traffic=traffic,
        compute_s=compute,
        waiting_s=waiting,
        decode_s=decode,
        efficiency=efficiency,
        calibration=calibration,
        tokens=tokens,
        bill=bill,
    )


def _traffic(request: Request, cluster: Cluster, model: Any, trained_bytes: int) -> Traffic:
    if cluster.num_gpus == 1:
        return NO_TRAFFIC
    size = request.compute_dtype.itemsize
    if request.layout == "layers":
        return layer_traffic(request.config, cluster, size)
    per_pass = request.micro_batch * request.tokens
    experts, shared = 0, 0
    for name, parameter in model.named_parameters():
        bytes_ = parameter.numel() * min(size, parameter.dtype.itemsize)
        if ".experts." in name:
            experts += bytes_
        else:
            shared += bytes_
    found = training_expert_traffic(request.config, cluster, request.expert_parallel, request.checkpointing)
    if request.layout == "fsdp":
        weights = shared + experts // request.expert_parallel
        return found + sharded_traffic(cluster, weights, trained_bytes, per_pass, 2)
    return found + sharded_traffic(cluster, 0, 2 * trained_bytes, per_pass * request.accumulation, 0)


def _decode_seconds(request: Request, cluster: Cluster, counts: Counts, flops: TokenFlops, efficiency: float) -> float:
    rows = samples_per_process(request)
    if not rows:
        return 0.0
    size = request.compute_dtype.itemsize
    # Enough rows hit every expert.
    experts = min(1.0, rows * counts.active / max(1, counts.total))
    read = ((counts.total - counts.routed) + counts.routed * experts) * size
    cache = request.tokens / 2 * cache_numbers(request.config) * size
    return decode_seconds_per_token(read, cache, rows, flops.forward, cluster.gpu, efficiency)


def _tokens_of_run(request: Request, cluster: Cluster) -> float | None:
    steps = request.recipe.trainer.get("max_steps")
    if not isinstance(steps, int) or steps <= 0:
        return None
    processes = 1 if request.layout in ("single", "layers") else cluster.num_gpus
    return float(steps) * request.micro_batch * request.accumulation * processes * request.tokens
