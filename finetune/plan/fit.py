"""What would fit: the largest micro-batch and sequence, and changes to a recipe that make it fit, cheapest first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from seeklet.modeling import SeekletConfig
from seeklet.modeling.errors import ConfigError

from .cluster import GPUS_PER_NODE, Cluster, known_gpus, make_cluster
from .memory import GpuMemory, plan_memory
from .plan import Plan, make_plan
from .request import Request

_SEQUENCE_STEP = 256
_MOST_SEQUENCES = 4096
_MOST_TOGETHER = 6


@dataclass(frozen=True)
class Change:
    """One way to make a plan fit, or to save."""

    what: str
    """In the recipe's words, or the command's."""
    memory: GpuMemory
    available: int
    """Bytes of a GPU then."""
    cost_factor: float
    """Of the cost as planned, or of its GPU hours where a price is missing."""


def largest_micro_batch(plan: Plan, model: Any) -> int:
    """Return how many sequences of the recipe's length fit at a time; 0 where not even one does."""
    return _largest(lambda number: _fits(plan, model, micro_batch=number), _MOST_SEQUENCES)


def largest_sequence(plan: Plan, model: Any) -> int:
    """Return how many tokens a single sequence may have to fit, a multiple of 256, up to what the model knows."""
    most = int(getattr(plan.request.config, "max_position_embeddings", 131072)) // _SEQUENCE_STEP
    number = _largest(lambda n: _fits(plan, model, micro_batch=1, tokens=n * _SEQUENCE_STEP), most)
    return number * _SEQUENCE_STEP


def rank_changes(plan: Plan, say: Callable[[str], None] = lambda _: None) -> list[Change]:
    """Return changes that make the plan fit, or, where it fits, that cost less; cheapest first.

    Each is planned anew. Changes of what is learned (an adapter in place of all weights, shorter texts) come as well,
    and say so; whoever trains decides.
    """
    found = []
    for what, request, cluster in _candidates(plan):
        say(what)
        # What lies where changes nothing of what one pass keeps, unless FSDP gathers weights in another dtype.
        before, now = plan.request, request
        same = _passes_as(before) == _passes_as(now)
        gathers_else = before.layout != now.layout and before.recipe.model.dtype == "float32"
        reused = plan.activations if same and not gathers_else else None
        changed = make_plan(request, cluster, plan.efficiency, plan.bill.tokens, reused, plan.calibration)
        factor = _compare_cost(changed, plan)
        if changed.fits and (not plan.fits or factor < 0.99):
            found.append(Change(what, changed.memory, changed.cluster.gpu.memory_bytes, factor))
    if not found and not plan.fits:
        found = _combine(plan, say)
    return sorted(found, key=lambda change: change.cost_factor)


def _combine(plan: Plan, say: Callable[[str], None]) -> list[Change]:
    """Return several changes at once, one after the other until it fits, where none does alone; else nothing."""
    parts: list[str] = []
    changed, kinds = plan, set[str]()
    for _ in range(_MOST_TOGETHER):
        ahead = [each for each in _smaller(changed.request, changed.cluster) if each[0].split(":")[0] not in kinds]
        if not ahead:
            break
        what, request, cluster = ahead[0]
        kinds.add(what.split(":")[0])
        parts.append(what)
        say("; ".join(parts))
        reused = changed.activations if _passes_as(changed.request) == _passes_as(request) else None
        changed = make_plan(request, cluster, plan.efficiency, plan.bill.tokens, reused, plan.calibration)
        if changed.fits:
            factor = _compare_cost(changed, plan)
            return [Change("together: " + "; ".join(parts), changed.memory, cluster.gpu.memory_bytes, factor)]
    return []


def _candidates(plan: Plan) -> Iterator[tuple[str, Request, Cluster]]:
    if not plan.fits:
        yield from _smaller(plan.request, plan.cluster)
    request, cluster, recipe = plan.request, plan.cluster, plan.request.recipe
    # FSDP does not share out quantised weights.
    if request.layout == "layers" and recipe.model.quantization is None:
        settings = replace(recipe.model, device_map=None)
        changed = request.with_changes(recipe=replace(recipe, model=settings), layout="fsdp")
        yield "model.device_map: null, started with accelerate's FSDP2, all GPUs working at once", changed, cluster
    if request.layout in ("fsdp", "single"):
        nodes = cluster.nodes * (1 if 2 * cluster.gpus_per_node <= GPUS_PER_NODE else 2)
        bigger = make_cluster(cluster.gpu.key, 2 * cluster.num_gpus, nodes)
        shared = "ddp" if recipe.model.quantization else "fsdp"
        layout = shared if request.layout == "single" else request.layout
        yield f"--num-gpus {bigger.num_gpus}", request.with_changes(layout=layout), replace(bigger, gpu=cluster.gpu)
    for gpu in known_gpus().values():
        larger = gpu.memory_mib > cluster.gpu.memory_mib or gpu.tflops_bf16 > cluster.gpu.tflops_bf16
        if larger and gpu.price_per_hour is not None and gpu.key != cluster.gpu.key:
            yield f"--gpu {gpu.key}", request, replace(cluster, gpu=gpu)


def _smaller(request: Request, cluster: Cluster) -> Iterator[tuple[str, Request, Cluster]]:
    """Yield what takes less memory and no less time."""
    recipe = request.recipe

    def with_model(**settings: Any) -> Request:
        changed = replace(recipe, model=replace(recipe.model, **settings))
        return request.with_changes(recipe=changed, keep_fp8=changed.model.fp8 == "keep")

    if request.micro_batch > 1:
        more = request.accumulation * request.micro_batch
        what = f"trainer.per_device_train_batch_size: 1 and gradient_accumulation_steps: {more}"
        yield what, request.with_changes(micro_batch=1, accumulation=more), cluster
    if not request.checkpointing:
        yield "trainer.gradient_checkpointing: true", request.with_changes(checkpointing=True), cluster
    if not request.adapts and not request.optimizer.endswith("8bit"):
        # FSDP's tensors are none that bitsandbytes knows; torchao's optimizer is PyTorch's own.
        optimizer = "adamw_torch_8bit" if request.layout == "fsdp" else "adamw_bnb_8bit"
        yield f"trainer.optim: {optimizer}", request.with_changes(optimizer=optimizer), cluster
    if request.layout == "fsdp" and not request.offload:
        yield "FSDP with CPU offload (slower by what PCIe takes)", request.with_changes(offload=True), cluster
    one_copy = request.adapts and request.layout != "fsdp" and recipe.model.quantization is None
    is_fp8 = getattr(request.config, "quantization_config", None) is not None
    if one_copy and is_fp8 and not request.keep_fp8:
        yield "model.fp8: keep", with_model(fp8="keep"), cluster
    if one_copy and (isinstance(request.config, SeekletConfig) or not is_fp8):
        changed = with_model(quantization="nf4", fp8="dequantize")
        if _can_be_built(changed):
            yield "model.quantization: nf4 (QLoRA; rounds the frozen weights)", changed, cluster
    if recipe.model.dtype == "float32" and request.adapts:
        yield "model.dtype: bfloat16", with_model(dtype="bfloat16"), cluster
    if request.tokens > 1024 and request.micro_batch == 1:
        half = request.tokens // 2
        yield f"texts of at most {half:,} tokens (changes what is learned)", request.with_changes(tokens=half), cluster


def _can_be_built(request: Request) -> bool:
    try:
        request.build()
    except ConfigError:
        # Rows that no block goes into.
        return False
    return True


def _passes_as(request: Request) -> tuple[Any, ...]:
    model = request.recipe.model
    return request.checkpointing, request.keep_fp8, model.dtype, model.quantization


def _compare_cost(changed: Plan, plan: Plan) -> float:
    """Return the cost as a share of the other plan's, or the GPU hours where a price is missing."""
    if changed.bill.cost is None or plan.bill.cost is None:
        return changed.bill.gpu_hours / plan.bill.gpu_hours
    return changed.bill.cost / plan.bill.cost


def _fits(plan: Plan, model: Any, **changed: int) -> bool:
    memory = plan_memory(plan.request.with_changes(**changed), plan.cluster, model, plan.activations)
    return memory.total <= plan.cluster.gpu.memory_bytes


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 0 to `most` that fits, where smaller ones do if it does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
