"""A plan as tables for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from .fit import Change
from .memory import CONTEXT_BYTES, FRAGMENTATION_SHARE
from .packages import missing_packages
from .plan import Plan
from .request import LAYOUTS, Request, samples_per_process
from .speed import BANDWIDTH_EFFICIENCY, EFFICIENCY

PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "companion": "reference or teacher",
    "sampler": "vLLM (its weights and cache)",
    "gathered": "layers gathered (FSDP)",
    "activations": "activations",
    "logits": "logits",
    "kv_cache": "KV cache",
    "fragmentation": "fragmentation and CUDA",
}


def show_plan(plan: Plan, largest: tuple[int, int], changes: list[Change], console: Console) -> None:
    """Print a plan, the largest (micro-batch, sequence) that fit, and the changes that would help."""
    request, cluster, gpu = plan.request, plan.cluster, plan.cluster.gpu
    nodes = f" on {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    sharing = request.expert_parallel
    shared = f", routed experts shared by {sharing}" if sharing > 1 else ""
    layout = f"{LAYOUTS[request.layout]}{shared}"
    console.print(f"{request.recipe.model.path} on {cluster.num_gpus} x {gpu.name}{nodes}: {layout}")
    counts = plan.counts
    share = plan.trained / (counts.total + counts.mtp)
    modules = f", {_number(counts.mtp)} more in multi-token prediction" if counts.mtp else ""
    console.print(
        f"parameters: {_number(counts.total)}, of which a token passes {_number(counts.active)}{modules}; trained: "
        f"{_number(plan.trained)} ({share:.2%})",
        soft_wrap=True,
    )
    console.print(_verdict(plan, largest), style=f"bold {'green' if plan.fits else 'red'}", soft_wrap=True)
    console.print(_memory_table(plan))
    console.print(_work_table(plan))
    for line in (*assumptions(plan), *missing_packages(request.recipe)):
        # A package's extras stand in brackets, as markup does.
        console.print(f"- {line}", soft_wrap=True, markup=False)
    if changes:
        # GPU hours where this plan's GPU has no price.
        unit = "the cost" if plan.bill.cost is not None else "the GPU hours"
        less = "What would cost less:" if plan.bill.cost is not None else "What would take fewer GPU hours:"
        console.print("What would make it fit, cheapest first:" if not plan.fits else less)
        for change in changes:
            size, factor = change.memory.total / 1e9, change.cost_factor
            console.print(f"- {change.what}: {size:.1f} GB a GPU, {factor:.2f} x {unit}", soft_wrap=True, markup=False)
    elif not plan.fits:
        console.print("No single change makes it fit: combine them, take more GPUs, or another model.", soft_wrap=True)


def assumptions(plan: Plan) -> list[str]:
    """Return what a plan assumes rather than counts, a line each."""
    gpu = plan.cluster.gpu
    price = "no price is known for it; pass --price" if gpu.price_per_hour is None else gpu.price_source
    host = plan.loading
    waiting = f", {host.host_in_training / 1e9:,.1f} GB in training" if host.host_in_training > 5e7 else ""
    lines = [
        _efficiency_line(plan),
        f"assumed: fragmentation of {FRAGMENTATION_SHARE:.0%} of what comes and goes, {CONTEXT_BYTES / 2**30:g} GiB "
        f"for CUDA; energy at {gpu.tdp_w:g} W a GPU, without host and cooling",
        f"price: {'' if gpu.price_per_hour is None else f'{gpu.price_per_hour:g} USD an hour, '}{price}",
        "counted: parameters on the meta device; activations by traced steps of shallow versions of the model; in the "
        f"host's memory, a node needs {host.host / 1e9:,.1f} GB to load the weights{waiting}",
    ]
    if plan.request.recipe.model.quantization:
        lines.append(
            "not counted: the time to expand quantised weights, which made a step on a CPU 1.05 to 1.35 times as long; "
            "not yet run on a GPU"
        )
    if plan.decode_s:
        rows = samples_per_process(plan.request)
        lines.append(
            f"assumed of sampling: every sample is as long as the longest, {plan.request.tokens:,} tokens with its "
            f"prompt, {rows:,} at a time on each GPU; weights and cache are read at {BANDWIDTH_EFFICIENCY:.0%} of "
            f"{plan.cluster.gpu.bandwidth_gb_per_s:,.0f} GB/s"
        )
    return lines


def _efficiency_line(plan: Plan) -> str:
    gpu, calibration = plan.cluster.gpu, plan.calibration
    of = f"of {gpu.tflops_bf16:g} TFLOP/s in bf16"
    if calibration is not None:
        return f"measured: {calibration.describe()}; taken for the share {of} of the {gpu.name}"
    if plan.efficiency != EFFICIENCY:
        return f"given: {plan.efficiency:.0%} {of} (--efficiency)"
    return (
        f"assumed: {plan.efficiency:.0%} {of} (--efficiency, --calibrate); not yet run for seeklet on a GPU, and "
        "measured at large scale by DeepSeek (39 %) and Meta (38-43 %)"
    )


def as_json(plan: Plan, largest: tuple[int, int], changes: list[Change]) -> dict[str, Any]:
    """Return the same as plain values; bytes, seconds, USD."""
    gpu, request = plan.cluster.gpu, plan.request
    return {
        "model": request.recipe.model.path,
        "stage": request.recipe.stage,
        "cluster": {"gpu": asdict(gpu), "num_gpus": plan.cluster.num_gpus, "nodes": plan.cluster.nodes},
        "layout": request.layout,
        "micro_batch": request.micro_batch,
        "tokens_per_sequence": request.tokens,
        "parameters": {**asdict(plan.counts), "trained": plan.trained},
        "memory_per_gpu": {**plan.memory.parts(), "total": plan.memory.total, "available": gpu.memory_bytes},
        "loading": asdict(plan.loading),
        "fits": plan.fits,
        "largest_micro_batch": largest[0],
        "largest_sequence": largest[1],
        "flops_forward_per_token": plan.flops.forward,
        "efficiency": plan.efficiency,
        "calibration": None if plan.calibration is None else asdict(plan.calibration),
        "tokens_per_s": plan.tokens_per_s,
        "gpu_seconds_per_token": {
            "computing": plan.compute_s,
            "waiting": plan.waiting_s,
            "sampling": plan.decode_s,
        },
        "traffic_bytes_per_token": asdict(plan.traffic),
        "run": {**asdict(plan.bill), "tokens_known": plan.tokens is not None},
        "changes": [
            {
                "what": change.what,
                "memory_per_gpu": change.memory.total,
                "available": change.available,
                "cost_factor": change.cost_factor,
            }
            for change in changes
        ],
        "assumptions": assumptions(plan),
        "missing": missing_packages(request.recipe),
    }


def _memory_table(plan: Plan) -> Table:
    table = Table("memory of the fullest GPU", "GB", "share", title=None)
    for column in table.columns[1:]:
        column.justify = "right"
    available = plan.cluster.gpu.memory_bytes
    for part, size in plan.memory.parts().items():
        if size:
            table.add_row(PART_NAMES[part], f"{size / 1e9:.2f}", f"{size / available:.1%}")
    table.add_section()
    table.add_row("together", f"{plan.memory.total / 1e9:.2f}", f"{plan.memory.total / available:.1%}")
    table.add_row("there is", f"{available / 1e9:.2f}", "")
    return table


def _work_table(plan: Plan) -> Table:
    bill, per_token = plan.bill, plan.seconds_per_token
    what = "the run" if plan.tokens is not None else "each billion tokens (the recipe names no max_steps; --tokens)"
    table = Table(what, "", title=None)
    table.columns[1].justify = "right"
    table.add_row("tokens", _number(bill.tokens))
    table.add_row("tokens per second", f"{plan.tokens_per_s:,.0f}")
    table.add_row("hours", f"{bill.hours:,.2f}")
    table.add_row("GPU hours", f"{bill.gpu_hours:,.1f}")
    table.add_row("energy", f"{bill.energy_kwh:,.1f} kWh")
    table.add_row("cost", "no price known" if bill.cost is None else f"{bill.cost:,.2f} USD")
    waiting = "for other GPUs' layers" if plan.request.layout == "layers" else "for traffic"
    parts = (("training", plan.compute_s), (f"waiting {waiting}", plan.waiting_s), ("sampling", plan.decode_s))
    for name, seconds in parts:
        if seconds:
            table.add_row(f"of it {name}", f"{seconds / per_token:.0%}")
    traffic = plan.traffic
    if traffic.within_node or traffic.across_nodes:
        # As fast as all GPUs together are, each passes its share of the tokens.
        each = plan.tokens_per_s / plan.cluster.num_gpus
        for link, sent, speed in (
            ("within the node", traffic.within_node, plan.cluster.gpu.nvlink_gb_per_s),
            ("to other nodes", traffic.across_nodes, plan.cluster.gpu.network_gb_per_s),
        ):
            if sent:
                what = f"{_size(sent)}, {sent * each / 1e9:.3g} of {speed:g} GB/s"
                table.add_row(f"a GPU sends {link}, per token", what)
    return table


def _verdict(plan: Plan, largest: tuple[int, int]) -> str:
    request, available = plan.request, plan.cluster.gpu.memory_bytes
    now = f"{request.micro_batch} x {request.tokens:,} tokens at a time"
    free = (available - max(plan.memory.total, plan.loading.gpu)) / 1e9
    if plan.fits:
        return f"FITS: {now}, {free:.1f} GB of each GPU are left. The most: {_most(request, largest)}."
    when = "" if plan.memory.total > available else " while loading"
    least = _most(request, largest) if any(largest) else "nothing, however short"
    return f"DOES NOT FIT: {now} need {-free:.1f} GB more than a GPU has{when}. What fits: {least}."


def _most(request: Request, largest: tuple[int, int]) -> str:
    micro_batch = f"micro-batches of {largest[0]:,} at {request.tokens:,} tokens" if largest[0] else ""
    positions = int(getattr(request.config, "max_position_embeddings", 0) or 0)
    known = ", as long as the model knows" if largest[1] == positions else ""
    sequence = f"one sequence of {largest[1]:,} tokens{known}" if largest[1] else ""
    return " or ".join(filter(None, (micro_batch, sequence)))


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e6:,.1f} MB" if bytes_ >= 1e6 else f"{bytes_ / 1e3:,.1f} kB"


def _number(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"
